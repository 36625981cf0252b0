import { assert, assertEquals, assertThrows } from "@std/assert";
import { EplbError } from "../../lib/native/errors.ts";
import { ExpertWeights } from "../../lib/native/weights.ts";
import { ExpertLayout } from "../../lib/weights/layout.ts";
import { library } from "../_native.ts";

const layout = new ExpertLayout([
  { name: "a", dtype: "U8", shape: [12] },
  { name: "s", dtype: "F32", shape: [1] },
]);
const shape = { layout, layers: 2, slots: 3 };

function memory(bytes: number): { bytes: Uint8Array; address: bigint } {
  const array = new Uint8Array(bytes);
  return {
    bytes: array,
    address: Deno.UnsafePointer.value(Deno.UnsafePointer.of(array)),
  };
}

Deno.test("ExpertWeights.allocate() gives zeroed memory that keeps what is written", async () => {
  using weights = await ExpertWeights.allocate(library, shape);
  const zeros = weights.read({ layer: 1, slot: 2, tensor: 0 });
  assertEquals(zeros, new Uint8Array(12));
  const at = { layer: 1, slot: 2, tensor: 0, offset: 4 };
  weights.write(at, new Uint8Array([7, 8, 9]));
  const bytes = weights.read({ layer: 1, slot: 2, tensor: 0 });
  assertEquals([...bytes], [0, 0, 0, 0, 7, 8, 9, 0, 0, 0, 0, 0]);
  assertEquals(
    weights.read({ layer: 1, slot: 1, tensor: 0 }),
    new Uint8Array(12),
  );
});

Deno.test("ExpertWeights.read() and write() refuse what is out of range", async () => {
  using weights = await ExpertWeights.allocate(library, shape);
  const positions = [
    { layer: 2, slot: 0, tensor: 0 },
    { layer: 0, slot: 3, tensor: 0 },
    { layer: 0, slot: 0, tensor: 2 },
    { layer: 0, slot: 0, tensor: 0, offset: 10 },
  ];
  for (const position of positions) {
    const error = assertThrows(
      () => weights.write(position, new Uint8Array(4)),
      EplbError,
    );
    assertEquals(error.code, "invalid-argument");
    assertThrows(
      () => weights.read(position, new Uint8Array(4)),
      EplbError,
    );
  }
});

Deno.test("ExpertWeights.register() reads and writes the caller's memory, honouring strides", () => {
  const a = memory(2 * 3 * 16);
  const s = memory(2 * 3 * 4);
  using weights = ExpertWeights.register(library, {
    ...shape,
    memory: [0n, 1n].map((layer) => [
      { address: a.address + layer * 48n, stride: 16 },
      { address: s.address + layer * 12n },
    ]),
  });
  weights.write({ layer: 1, slot: 2, tensor: 0 }, new Uint8Array(12).fill(5));
  assertEquals(a.bytes.indexOf(5), 48 + 2 * 16);
  assertEquals(a.bytes.filter((byte) => byte === 5).length, 12);
  s.bytes[3 * 4 + 4] = 9;
  assertEquals(weights.read({ layer: 1, slot: 1, tensor: 1 })[0], 9);
  assertEquals(weights.address(1, 0), {
    address: a.address + 48n,
    stride: 16,
  });
});

Deno.test("ExpertWeights.register() refuses memory that cannot be right", () => {
  const { address } = memory(1000);
  const good = [
    [{ address }, { address: address + 200n }],
    [{ address: address + 300n }, { address: address + 400n }],
  ];
  ExpertWeights.register(library, { ...shape, memory: good }).close();
  const refused = [
    { why: "null", memory: [[{ address: 0n }, good[0]![1]!], good[1]!] },
    {
      why: "stride",
      memory: [[{ address, stride: 11 }, good[0]![1]!], good[1]!],
    },
    {
      why: "overlap",
      memory: [good[0]!, [{ address: address + 20n }, good[1]![1]!]],
    },
  ];
  for (const { why, memory } of refused) {
    const error = assertThrows(
      () => ExpertWeights.register(library, { ...shape, memory }),
      EplbError,
    );
    assertEquals(error.code, "invalid-argument", why);
    assert(error.message.toLowerCase().includes(why), error.message);
  }
  assertThrows(
    () => ExpertWeights.register(library, { ...shape, memory: good.slice(1) }),
    RangeError,
    "Cannot register weights: memory has 1 layers, not 2",
  );
  assertThrows(
    () =>
      ExpertWeights.register(library, {
        ...shape,
        memory: [good[0]!, [good[1]![0]!]],
      }),
    RangeError,
    "Cannot register weights: layer 1 has 1 tensors, not 2",
  );
});

Deno.test("ExpertWeights.close() may be called twice, and ends every use", async () => {
  const weights = await ExpertWeights.allocate(library, shape);
  weights.close();
  weights.close();
  assertThrows(
    () => weights.read({ layer: 0, slot: 0, tensor: 0 }),
    TypeError,
    "Cannot use expert weights: they are closed",
  );
});

Deno.test("ExpertWeights.fill() depends on seed, layer, expert and tensor alone", async () => {
  using weights = await ExpertWeights.allocate(library, shape);
  using other = await ExpertWeights.allocate(library, shape);
  await weights.fill(new Int32Array([4, 1, 4, 2, 3, -1]), { seed: 3 });
  await other.fill(new Int32Array([1, 4, 0, 5, 2, 3]), { seed: 3 });
  const read = (from: ExpertWeights, layer: number, slot: number): string =>
    String(from.read({ layer, slot, tensor: 0 }));
  assertEquals(read(weights, 0, 0), read(weights, 0, 2));
  assertEquals(read(weights, 0, 0), read(other, 0, 1));
  assertEquals(read(weights, 1, 0), read(other, 1, 1));
  assert(read(weights, 0, 0) !== read(weights, 0, 1));
  assert(read(weights, 0, 3 % 3) !== read(weights, 1, 0));
  assertEquals(read(weights, 1, 2), String(new Uint8Array(12)));
});

Deno.test("ExpertWeights.digest() tells equal bytes from different ones", async () => {
  using weights = await ExpertWeights.allocate(library, shape);
  await weights.fill(new Int32Array([0, 1, 0, 0, 1, 0]));
  const digests = await weights.digest();
  assertEquals(digests.length, 2 * 2 * 3 * 2);
  const one = (layer: number, slot: number, tensor: number): string => {
    const i = 2 * ((layer * 3 + slot) * 2 + tensor);
    return `${digests[i]},${digests[i + 1]}`;
  };
  assertEquals(one(0, 0, 0), one(0, 2, 0));
  assertEquals(one(0, 0, 1), one(0, 2, 1));
  assert(one(0, 0, 0) !== one(0, 1, 0));
  assert(one(0, 0, 0) !== one(1, 0, 0));
  const bytes = weights.read({ layer: 0, slot: 0, tensor: 0 });
  bytes[11]! ^= 1;
  weights.write({ layer: 0, slot: 0, tensor: 0 }, bytes);
  const changed = await weights.digest();
  const differing = digests.reduce(
    (n, w, i) => n + Number(w !== changed[i]),
    0,
  );
  assert(differing >= 1 && differing <= 2);
});

Deno.test("ExpertWeights.digest() is the documented sum", async () => {
  // Written down again from the definition, with unbounded integers.
  const mask = (1n << 64n) - 1n;
  const mix = (x: bigint): bigint => {
    x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
    x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & mask;
    return x ^ (x >> 31n);
  };
  const digestOf = (bytes: Uint8Array): bigint => {
    let sum = mix(BigInt(bytes.length));
    for (let i = 0; 8 * i < bytes.length; i++) {
      let word = 0n;
      for (let b = 7; b >= 0; b--) {
        word = (word << 8n) | BigInt(bytes[8 * i + b] ?? 0);
      }
      sum += mix((word + mix(BigInt(i + 1))) & mask);
    }
    return sum & mask;
  };
  using weights = await ExpertWeights.allocate(library, shape);
  await weights.fill(new Int32Array([0, 1, 2, 3, 4, 5]), { seed: 9 });
  const digests = new BigUint64Array((await weights.digest()).buffer);
  let i = 0;
  for (let layer = 0; layer < 2; layer++) {
    for (let slot = 0; slot < 3; slot++) {
      for (let tensor = 0; tensor < 2; tensor++) {
        const bytes = weights.read({ layer, slot, tensor });
        assertEquals(digests[i++], digestOf(bytes));
      }
    }
  }
});
