import { assertEquals } from "@std/assert";
import { forwardLines } from "../../lib/cluster/lines.ts";

Deno.test("forwardLines() does not wait for output that nobody ends", async () => {
  const lines: string[] = [];
  let canceled = false;
  // What a process that escaped from the rank's group leaves: an open pipe.
  const stream = new ReadableStream<Uint8Array>({
    start(controller): void {
      controller.enqueue(new TextEncoder().encode("one\nlast"));
    },
    cancel(): void {
      canceled = true;
    },
  });
  await forwardLines(stream, Promise.resolve(), (line) => lines.push(line));
  assertEquals(lines, ["one", "last"]);
  assertEquals(canceled, true);
});
