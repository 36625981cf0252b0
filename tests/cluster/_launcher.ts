// A launcher in a process of its own: its ranks say their process ids and sleep.
import { launchRanks } from "../../lib/cluster/launch.ts";

try {
  await launchRanks({
    worldSize: 2,
    command: "sh",
    args: ["-c", "echo $$; sleep 600 & echo $!; wait"],
    server: { address: "127.0.0.1:1", token: "t" },
    // deno-lint-ignore no-console
    onLine: (line) => console.log(line),
  });
} catch (error) {
  // deno-lint-ignore no-console
  console.log((error as Error).message);
  Deno.exit(7);
}
