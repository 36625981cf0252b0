// A store in a process of its own: it says where it listens.
import { StoreServer } from "../../lib/cluster/store_server.ts";

const silence = Number(Deno.env.get("EPLB_TEST_SILENCE") ?? 30_000);
const server = StoreServer.listen({
  worldSize: 2,
  token: "a secret",
  heartbeat: { interval: 100, silence },
});
// deno-lint-ignore no-console
console.log(server.port);
