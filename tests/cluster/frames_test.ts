import { assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import {
  encodeFrame,
  FrameError,
  type FrameLimits,
  readFrame,
} from "../../lib/cluster/frames.ts";

const LIMITS: FrameLimits = { header: 1 << 16, payload: 1 << 16 };

/** Hands out bytes in pieces of the given sizes, over and over. */
function source(
  bytes: Uint8Array,
  pieces: readonly number[] = [bytes.length],
): { read(view: Uint8Array): Promise<number | null> } {
  let offset = 0;
  let turn = 0;
  return {
    read(view: Uint8Array): Promise<number | null> {
      if (offset === bytes.length) return Promise.resolve(null);
      const piece = pieces[turn++ % pieces.length]!;
      const part = bytes.subarray(offset).subarray(
        0,
        Math.min(piece, view.length),
      );
      view.set(part);
      offset += part.length;
      return Promise.resolve(part.length);
    },
  };
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

/** A frame around any header bytes, made by hand. */
function rawFrame(header: Uint8Array, payload = new Uint8Array()): Uint8Array {
  const lengths = new Uint8Array(8);
  new DataView(lengths.buffer).setUint32(0, header.length);
  new DataView(lengths.buffer).setUint32(4, payload.length);
  return join([lengths, header, payload]);
}

const header = fc.dictionary(fc.string(), fc.jsonValue(), { maxKeys: 5 })
  // -0 is 0 in JSON.
  .map((value) => JSON.parse(JSON.stringify(value)));
const payload = fc.uint8Array({ maxLength: 300 });
const pieces = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 });

Deno.test("encodeFrame() lays out lengths, header and payload", () => {
  assertEquals(
    encodeFrame({ a: 1 }, new Uint8Array([7, 8])),
    new Uint8Array([
      ...[0, 0, 0, 7, 0, 0, 0, 2],
      ...new TextEncoder().encode('{"a":1}'),
      ...[7, 8],
    ]),
  );
});

Deno.test("readFrame() reads back what was encoded, in pieces of any size", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(header, payload), { maxLength: 4 }),
      pieces,
      async (frames, sizes) => {
        const bytes = join(frames.map(([h, p]) => encodeFrame(h, p)));
        const from = source(bytes, sizes);
        for (const [h, p] of frames) {
          const frame = await readFrame(from, LIMITS);
          assertEquals(JSON.stringify(frame?.header), JSON.stringify(h));
          assertEquals(frame?.payload, p as Uint8Array<ArrayBuffer>);
        }
        assertEquals(await readFrame(from, LIMITS), undefined);
      },
    ),
  );
});

Deno.test("readFrame() refuses a frame that is cut off anywhere", async () => {
  await fc.assert(
    fc.asyncProperty(header, payload, fc.nat(), async (h, p, cut) => {
      const frame = encodeFrame(h, p);
      const kept = 1 + cut % (frame.length - 1);
      const from = source(frame.subarray(0, kept));
      await assertRejects(() => readFrame(from, LIMITS), FrameError, "ended");
    }),
  );
});

Deno.test("readFrame() refuses lengths above the limits before it reads on", async () => {
  const limits = { header: 7, payload: 2 };
  const fits = encodeFrame({ a: 1 }, new Uint8Array(2));
  assertEquals((await readFrame(source(fits), limits))?.header, { a: 1 });
  const large = source(encodeFrame({ a: 1 }, new Uint8Array(3)).subarray(0, 8));
  await assertRejects(
    () => readFrame(large, limits),
    FrameError,
    "payload of 3 bytes is above the limit of 2",
  );
  const web = source(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"));
  await assertRejects(
    () => readFrame(web, LIMITS),
    FrameError,
    "header of 1195725856 bytes is above the limit of 65536",
  );
});

Deno.test("readFrame() refuses headers that are not a JSON object", async () => {
  for (const text of ["", "{", "nothing", "null", "[1]", "3", '"a"']) {
    const from = source(rawFrame(new TextEncoder().encode(text)));
    await assertRejects(
      () => readFrame(from, LIMITS),
      FrameError,
      "header is not",
    );
  }
  const from = source(rawFrame(new Uint8Array([0x22, 0xff, 0x22])));
  await assertRejects(() => readFrame(from, LIMITS), FrameError, "not JSON");
});

Deno.test("readFrame() survives garbage", async () => {
  const garbage = fc.uint8Array({ minLength: 1, maxLength: 64 });
  await fc.assert(fc.asyncProperty(garbage, pieces, async (bytes, sizes) => {
    // A random header that is an object is as good as impossible.
    const limits = { header: 32, payload: 32 };
    const from = source(bytes, sizes);
    await assertRejects(() => readFrame(from, limits), FrameError);
  }));
});
