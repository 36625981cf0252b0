// A store in a process of its own: it says where it listens.
import { StoreServer } from "../../lib/cluster/store_server.ts";

const server = StoreServer.listen({ worldSize: 2, token: "a secret" });
// deno-lint-ignore no-console
console.log(server.port);
