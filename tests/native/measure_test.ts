import { assert, assertEquals, assertRejects } from "@std/assert";
import { EplbError } from "../../lib/native/errors.ts";
import { measureProducts, Products } from "../../lib/native/measure.ts";
import { library } from "../_native.ts";

const SIZES = { ordinal: 0, m: 64, n: 256, k: 128, count: 5 };

Deno.test({
  name: "Products.create() says that a build without CUDA cannot measure",
  ignore: library.hasCuda,
  fn: async () => {
    for (const start of [Products.create, measureProducts]) {
      const error = await assertRejects(
        async () => await start(library, SIZES),
        EplbError,
        "Cannot measure products of CUDA device 0: libeplb was built without CUDA",
      );
      assertEquals(error.code, "unsupported");
    }
  },
});

Deno.test({
  name: "Products.run() times each product, again and again",
  ignore: library.devices().devices.length === 0,
  fn: async () => {
    using products = await Products.create(library, SIZES);
    for (let run = 0; run < 3; run++) {
      const seconds = await products.run();
      assertEquals(seconds.length, SIZES.count);
      assert(seconds.every((one) => one > 0), seconds.join());
    }
    products.close();
    await assertRejects(
      () => products.run(),
      TypeError,
      "Cannot run products: they are closed",
    );
  },
});

Deno.test({
  name: "Products.create() refuses sizes and counts out of range",
  ignore: library.devices().devices.length === 0,
  fn: async () => {
    for (const bad of [{ m: 0 }, { count: 0 }, { count: 65_537 }]) {
      const error = await assertRejects(
        () => Products.create(library, { ...SIZES, ...bad }),
        EplbError,
        "Cannot measure products",
      );
      assertEquals(error.code, "invalid-argument");
    }
  },
});
