// A rank in a process of its own: it joins, says so, and waits for the end.
import { rankIdentity } from "../../lib/cluster/identity.ts";
import { StoreClient } from "../../lib/cluster/store_client.ts";

const identity = rankIdentity((name) => Deno.env.get(name))!;
await using client = await StoreClient.connect({
  host: identity.storeHost,
  port: identity.storePort,
  rank: identity.rank,
  token: identity.token,
});
const ranks = await client.gather("ready", new Uint8Array([identity.rank]));
let last = `rank ${identity.rank} sees ${ranks.map(([rank]) => rank)}`;
if (!Deno.args.includes("--once")) {
  const timeout = 2 ** 31 - 1;
  last = await client.gather("end", undefined, { timeout })
    .then(() => "the end", (error: Error) => error.message);
}
// deno-lint-ignore no-console
console.log(last);
