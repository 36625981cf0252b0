import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import fc from "fast-check";
import { bytesOf, contentOf, sha256, TemporaryFolder } from "./_files.ts";
import { dtypeBits } from "../../lib/weights/dtype.ts";
import {
  openSafetensors,
  type SafetensorsSpec,
  writeSafetensors,
} from "../../lib/weights/safetensors.ts";

const REFERENCE = new URL(
  "../fixtures/checkpoints/mixtral-tiny/model.safetensors",
  import.meta.url,
);

Deno.test("openSafetensors() reads the example of the format's documentation", async () => {
  await using folder = new TemporaryFolder();
  await Deno.writeFile(
    folder.file(),
    bytesOf(
      "<\0\0\0\0\0\0\0" +
        '{"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}' +
        "\0\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f",
    ),
  );
  using file = await openSafetensors(folder.file());
  assertEquals(file.names, ["test"]);
  assertEquals(file.metadata, {});
  assertEquals(file.info("test"), {
    name: "test",
    dtype: "I32",
    shape: [2, 2],
    bytes: 16,
    begin: 0,
    end: 16,
  });
  assertEquals([...await file.read("test")], [...Array(16).keys()]);
});

Deno.test("writeSafetensors() writes these bytes", async () => {
  await using folder = new TemporaryFolder();
  await writeSafetensors(folder.file(), [
    { name: "a", dtype: "U8", shape: [3] },
    { name: "1", dtype: "BF16", shape: [] },
  ], {
    data: ({ name }) => [bytesOf(name === "a" ? "abc" : "xy")],
    metadata: { format: "pt" },
  });
  assertEquals(
    await Deno.readFile(folder.file()),
    bytesOf(
      "\x90\0\0\0\0\0\0\0" +
        '{"__metadata__":{"format":"pt"},' +
        '"1":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},' +
        '"a":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}}' +
        " ".repeat(7) + "xyabc",
    ),
  );
});

Deno.test("writeSafetensors() writes a file as the reference implementation does", async () => {
  await using folder = new TemporaryFolder();
  using source = await openSafetensors(fromFileUrl(REFERENCE));
  const tensors = source.names.map((name) => source.info(name));
  await writeSafetensors(folder.file(), tensors, {
    async *data({ name }): AsyncIterable<Uint8Array> {
      yield await source.read(name);
    },
    metadata: source.metadata,
  });
  assertEquals(
    await sha256(await Deno.readFile(folder.file())),
    await sha256(await Deno.readFile(REFERENCE)),
  );
});

/** Tensors of up to some hundred bytes, with names of all kinds. */
const tensorLists = fc.uniqueArray(
  fc.record({
    name: fc.oneof(
      fc.string({ unit: "binary" }),
      fc.constantFrom("0", "1", "__proto__", "constructor", '"\\'),
    ).filter((name) => name !== "__metadata__"),
    dtype: fc.constantFrom("F4", "U8", "F8_E4M3", "BF16", "F32", "I64"),
    shape: fc.array(fc.constantFrom(0, 1, 2, 4, 6), { maxLength: 3 })
      .map((shape) => [2, ...shape]),
  }),
  { selector: ({ name }) => name, maxLength: 6 },
) as fc.Arbitrary<SafetensorsSpec[]>;

/** Yields some bytes again and again in one buffer of `size` bytes. */
function* inChunks(bytes: Uint8Array, size: number): Iterable<Uint8Array> {
  const buffer = new Uint8Array(size);
  for (let begin = 0; begin < bytes.length; begin += size) {
    const chunk = bytes.subarray(begin, begin + size);
    buffer.set(chunk);
    yield buffer.subarray(0, chunk.length);
  }
}

Deno.test("openSafetensors() reads back what writeSafetensors() wrote", async () => {
  await using folder = new TemporaryFolder();
  const metadata = fc.dictionary(fc.string(), fc.string());
  await fc.assert(
    fc.asyncProperty(
      tensorLists,
      metadata,
      fc.integer({ min: 1, max: 64 }),
      async (tensors, metadata, size) => {
        await writeSafetensors(folder.file(), tensors, {
          data: (tensor) => inChunks(contentOf(tensor), size),
          metadata,
        });
        using file = await openSafetensors(folder.file());
        assertEquals(
          [...file.names].sort(),
          tensors.map(({ name }) => name).sort(),
        );
        assertEquals({ ...file.metadata }, { ...metadata });
        for (const tensor of tensors) {
          const { name, dtype, shape, begin } = file.info(tensor.name);
          assertEquals({ name, dtype, shape }, { ...tensor });
          assertEquals(begin % Math.max(dtypeBits(dtype) / 8, 1), 0);
          assertEquals(await file.read(name), contentOf(tensor));
        }
      },
    ),
    { numRuns: 60 },
  );
});

/** A file with one tensor "w" of the bytes 0 … 255. */
async function countingFile(path: string): Promise<void> {
  await writeSafetensors(path, [{ name: "w", dtype: "U8", shape: [256] }], {
    data: () => [new Uint8Array(256).map((_, index) => index)],
  });
}

Deno.test("SafetensorsReader.readInto() reads a part of a tensor", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  using file = await openSafetensors(folder.file());
  const target = new Uint8Array(8).fill(77);
  await file.readInto("w", target.subarray(2, 5), { offset: 100 });
  assertEquals([...target], [77, 77, 100, 101, 102, 77, 77, 77]);
  await file.readInto("w", new Uint8Array(0), { offset: 256 });
});

Deno.test("SafetensorsReader.readInto() keeps reads apart that run side by side", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  using file = await openSafetensors(folder.file());
  const targets = Array.from({ length: 64 }, () => new Uint8Array(4));
  await Promise.all(
    targets.map((target, i) => file.readInto("w", target, { offset: i * 4 })),
  );
  assertEquals(
    targets.flatMap((target) => [...target]),
    [...Array(256).keys()],
  );
});

Deno.test("SafetensorsReader.readInto() refuses bytes outside of the tensor", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  using file = await openSafetensors(folder.file());
  for (const offset of [-1, 254, 0.5, NaN]) {
    await assertRejects(
      () => file.readInto("w", new Uint8Array(3), { offset }),
      RangeError,
      `Cannot read 3 bytes at offset ${offset} of tensor "w" in "${folder.file()}": it has 256 bytes`,
    );
  }
});

Deno.test("SafetensorsReader.info() refuses a name that is not in the file", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  using file = await openSafetensors(folder.file());
  for (const name of ["x", "__proto__"]) {
    assertEquals(file.has(name), false);
    assertThrows(
      () => file.info(name),
      RangeError,
      `Cannot find tensor "${name}" in "${folder.file()}": it has 1 others`,
    );
    await assertRejects(() => file.read(name), RangeError);
  }
});

Deno.test("SafetensorsReader.read() says that the file was cut", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  using file = await openSafetensors(folder.file());
  const { size } = await Deno.stat(folder.file());
  await Deno.truncate(folder.file(), size - 10);
  await assertRejects(
    () => file.read("w"),
    Deno.errors.UnexpectedEof,
    "it ends 10 bytes early, it was cut after it was opened",
  );
  await file.readInto("w", new Uint8Array(246));
});

Deno.test("SafetensorsReader.close() may be called again and ends reading", async () => {
  await using folder = new TemporaryFolder();
  await countingFile(folder.file());
  const file = await openSafetensors(folder.file());
  file.close();
  file.close();
  await assertRejects(
    () => file.read("w"),
    TypeError,
    `Cannot read tensor "w" in "${folder.file()}": the reader is closed`,
  );
});

Deno.test("writeSafetensors() leaves the old file and nothing else when data fails", async () => {
  await using folder = new TemporaryFolder();
  await Deno.writeTextFile(folder.file(), "old");
  const w = { name: "w", dtype: "U8", shape: [4] } as const;
  const cases: [() => Iterable<Uint8Array>, string][] = [
    [
      () => [new Uint8Array(3)],
      'Cannot write tensor "w": it has 4 bytes, its data gives 3',
    ],
    [
      () => [new Uint8Array(3), new Uint8Array(3)],
      'Cannot write tensor "w": it has 4 bytes, its data gives 6 or more',
    ],
    [() => {
      throw new RangeError("the disk is on fire");
    }, "the disk is on fire"],
  ];
  for (const [data, message] of cases) {
    await assertRejects(
      () => writeSafetensors(folder.file(), [w], { data }),
      RangeError,
      message,
    );
  }
  assertEquals(await Deno.readTextFile(folder.file()), "old");
  const names = (await Array.fromAsync(Deno.readDir(folder.path)))
    .map(({ name }) => name);
  assertEquals(names, ["x.safetensors"]);
});

Deno.test("writeSafetensors() refuses tensors that no file can hold", async () => {
  await using folder = new TemporaryFolder();
  const w = { name: "w", dtype: "U8", shape: [4] } as const;
  const cases: [SafetensorsSpec[], string][] = [
    [[w, w], 'Cannot write tensor "w": the name is used twice'],
    [
      [{ ...w, name: "__metadata__" }],
      'Cannot write tensor "__metadata__": the name is reserved',
    ],
    [[{ ...w, shape: [-1] }], "Cannot size U8 tensor of shape [-1]"],
  ];
  for (const [tensors, message] of cases) {
    await assertRejects(
      () => writeSafetensors(folder.file(), tensors, { data: () => [] }),
      RangeError,
      message,
    );
  }
  assertEquals(await Array.fromAsync(Deno.readDir(folder.path)), []);
});

/** A reader that shares no code with this project: prints what a file holds. */
const PYTHON = `
import hashlib, json, struct, sys
data = open(sys.argv[1], "rb").read()
length, = struct.unpack_from("<Q", data)
assert length % 8 == 0
header = json.loads(data[8:8 + length])
found = {"__metadata__": header.pop("__metadata__", None)}
for name, t in header.items():
    begin, end = t["data_offsets"]
    content = data[8 + length + begin:8 + length + end]
    found[name] = [t["dtype"], t["shape"], hashlib.sha256(content).hexdigest()]
assert sum(t["data_offsets"][1] - t["data_offsets"][0] for t in header.values()) == len(data) - 8 - length
print(json.dumps(found))
`;

async function runPython(args: string[]): Promise<Deno.CommandOutput | null> {
  try {
    return await new Deno.Command("python3", { args }).output();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

Deno.test({
  name: "writeSafetensors() is understood by an independent reader in Python",
  ignore: await runPython(["--version"]) === null,
  async fn(): Promise<void> {
    await using folder = new TemporaryFolder();
    const tensors: SafetensorsSpec[] = [
      { name: "a/ü/\u{1f600}", dtype: "F4", shape: [3, 2] },
      { name: "w", dtype: "BF16", shape: [4, 8] },
      { name: "7", dtype: "I64", shape: [] },
      { name: "none", dtype: "F32", shape: [0, 3] },
    ];
    await writeSafetensors(folder.file(), tensors, {
      data: (tensor) => inChunks(contentOf(tensor), 5),
      metadata: { format: "pt" },
    });
    const output = await runPython(["-c", PYTHON, folder.file()]);
    assertEquals(new TextDecoder().decode(output!.stderr), "");
    const expected: Record<string, unknown> = {
      __metadata__: { format: "pt" },
    };
    for (const tensor of tensors) {
      const hash = await sha256(contentOf(tensor));
      expected[tensor.name] = [tensor.dtype, tensor.shape, hash];
    }
    assertEquals(
      JSON.parse(new TextDecoder().decode(output!.stdout)),
      expected,
    );
  },
});
