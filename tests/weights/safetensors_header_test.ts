import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import fc from "fast-check";
import {
  openSafetensors,
  writeSafetensors,
} from "../../lib/weights/safetensors.ts";
import { contentOf, fileOf, naiveRead, TemporaryFolder } from "./_files.ts";

Deno.test("openSafetensors() gives correct bytes or a clear error for any damage", async () => {
  await using folder = new TemporaryFolder();
  await writeSafetensors(folder.file("good"), [
    { name: "w13", dtype: "BF16", shape: [4, 3] },
    { name: "w2", dtype: "BF16", shape: [3, 2] },
    { name: "scale", dtype: "F8_E8M0", shape: [10] },
  ], {
    data: (tensor) => [contentOf(tensor)],
    metadata: { format: "pt" },
  });
  const good = await Deno.readFile(folder.file("good"));
  const damage = fc.array(
    fc.tuple(
      fc.oneof(fc.nat(good.length - 1), fc.nat(20)),
      fc.oneof(fc.nat(255), fc.constantFrom(...'0123456789,[]{}": ')),
    ),
    { minLength: 1, maxLength: 3 },
  );
  const length = fc.oneof(
    { weight: 4, arbitrary: fc.constant(good.length) },
    fc.nat(good.length + 20),
  );
  let opened = 0;
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(damage, length, async (changes, length) => {
      const bytes = new Uint8Array(length);
      bytes.set(good.subarray(0, length));
      for (const [at, value] of changes) {
        const byte = typeof value === "string" ? value.charCodeAt(0) : value;
        if (at < length) bytes[at] = byte;
      }
      await Deno.writeFile(folder.file(), bytes);
      let file;
      try {
        file = await openSafetensors(folder.file());
      } catch (error) {
        refused++;
        assertInstanceOf(error, SyntaxError);
        assertStringIncludes(error.message, `Cannot read "${folder.file()}": `);
        return;
      }
      using _ = file;
      opened++;
      const expected = naiveRead(bytes);
      assertEquals(new Set(file.names), new Set(expected.keys()));
      for (const [name, content] of expected) {
        assertEquals(await file.read(name), new Uint8Array(content));
      }
    }),
    { numRuns: 1000 },
  );
  assert(opened > 20 && refused > 20, `${opened} opened, ${refused} refused`);
});

Deno.test("openSafetensors() names what is wrong with a header", async () => {
  await using folder = new TemporaryFolder();
  const u8 = { dtype: "U8", shape: [4], data_offsets: [0, 4] };
  const cases: [Uint8Array, string][] = [
    [new Uint8Array(7), "7 bytes are too few for a header length"],
    [
      fileOf("{}", 0, 3n),
      "a header of 3 bytes does not fit a file of 10 bytes",
    ],
    [
      fileOf("{}", 0, 2n ** 64n - 1n),
      "a header of 18446744073709551615 bytes does not fit a file of 10 bytes",
    ],
    [fileOf(""), 'header does not begin with "{"'],
    [fileOf(" {}"), 'header does not begin with "{"'],
    [fileOf("{"), "header is not JSON"],
    [fileOf("{}}"), "header is not JSON"],
    [fileOf({ a: [1] }), 'tensor "a" is not described by an object'],
    [
      fileOf({ a: { ...u8, dtype: "F7" } }, 4),
      'tensor "a" has dtype "F7", which is not known',
    ],
    [
      fileOf({ a: { ...u8, dtype: { x: 1 } } }, 4),
      'tensor "a" has dtype {…}, which is not known',
    ],
    [
      fileOf({ a: { ...u8, shape: [-4] } }, 4),
      'tensor "a" has shape [-4], not a list of non-negative integers',
    ],
    [
      fileOf({ a: { ...u8, shape: 4 } }, 4),
      'tensor "a" has shape 4, not a list of non-negative integers',
    ],
    [
      fileOf({ a: { ...u8, shape: [1.5, [[]], "4"] } }, 4),
      'tensor "a" has shape [1.5, object, string], not a list',
    ],
    [
      fileOf({ a: { ...u8, shape: [2 ** 32, 2 ** 32] } }, 4),
      'tensor "a" has an impossible size',
    ],
    [
      fileOf({ a: { ...u8, dtype: "F4", shape: [7] } }, 4),
      'tensor "a" has an impossible size',
    ],
    [
      fileOf({ a: { ...u8, data_offsets: [0] } }, 4),
      'tensor "a" has data_offsets [0], not [begin, end]',
    ],
    [
      fileOf({ a: { ...u8, data_offsets: [0, 5] } }, 5),
      'tensor "a" of dtype U8 and shape [4] needs 4 bytes, data_offsets [0, 5] hold 5',
    ],
    [
      fileOf({ a: { ...u8, data_offsets: [4, 0] } }, 4),
      'tensor "a" of dtype U8 and shape [4] needs 4 bytes, data_offsets [4, 0] hold -4',
    ],
    [fileOf({ a: u8 }, 3), 'tensor "a" ends at byte 4, the data at byte 3'],
    [fileOf({ a: u8 }, 5), "tensors end at byte 4, the data at byte 5"],
    [
      fileOf({ a: u8, b: { ...u8, data_offsets: [3, 7] } }, 7),
      'tensor "b" begins at byte 3, the tensor before it ends at byte 4',
    ],
    [
      fileOf({ a: u8, b: { ...u8, data_offsets: [5, 9] } }, 9),
      'tensor "b" begins at byte 5, the tensor before it ends at byte 4',
    ],
    [
      fileOf({ a: { ...u8, data_offsets: [1, 5] } }, 5),
      'tensor "a" begins at byte 1, the tensor before it ends at byte 0',
    ],
    [
      fileOf({ __metadata__: ["pt"] }),
      '"__metadata__" is not an object',
    ],
    [
      fileOf({ __metadata__: { format: 1 } }),
      '"__metadata__" entry "format" is not a string',
    ],
    [
      fileOf(
        `{"a":${JSON.stringify(u8)}, "\\u0061" : ${JSON.stringify(u8)}}`,
        4,
      ),
      'header names "a" twice',
    ],
    [
      fileOf(
        '{"a":{"dtype":"U8","shape":[4],"shape":[0],"data_offsets":[0,4]}}',
      ),
      'header names "shape" twice',
    ],
  ];
  for (const [bytes, message] of cases) {
    await Deno.writeFile(folder.file(), bytes);
    const error = await assertRejects(
      () => openSafetensors(folder.file()),
      SyntaxError,
    );
    assertStringIncludes(
      error.message,
      `Cannot read "${folder.file()}": ${message}`,
    );
  }
});

Deno.test("openSafetensors() refuses a header that is not UTF-8", async () => {
  await using folder = new TemporaryFolder();
  const bytes = fileOf('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}');
  bytes[10] = 0xff;
  await Deno.writeFile(folder.file(), bytes);
  await assertRejects(
    () => openSafetensors(folder.file()),
    SyntaxError,
    "header is not UTF-8",
  );
});

Deno.test("openSafetensors() takes equal keys of different objects and inside strings", async () => {
  await using folder = new TemporaryFolder();
  const header = {
    __metadata__: { a: '{"a":1,"a":2}', dtype: '\\"' },
    a: { dtype: "U8", shape: [0], data_offsets: [0, 0] },
    dtype: { dtype: "U8", shape: [1], data_offsets: [0, 1] },
  };
  await Deno.writeFile(folder.file(), fileOf(header, new Uint8Array([9])));
  using file = await openSafetensors(folder.file());
  assertEquals(file.names, ["a", "dtype"]);
  assertEquals([...await file.read("dtype")], [9]);
});
