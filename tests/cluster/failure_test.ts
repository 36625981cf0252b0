import { assertEquals } from "@std/assert";
import {
  describeFailure,
  describeRanks,
  GatherTimeoutError,
  RankFailureError,
} from "../../lib/cluster/failure.ts";

Deno.test("describeRanks() lists ranks, and counts them where there are many", () => {
  assertEquals(describeRanks([4]), "rank 4");
  assertEquals(describeRanks([4, 5]), "ranks 4 and 5");
  assertEquals(describeRanks([1, 4, 5]), "ranks 1, 4 and 5");
  const ranks = [...new Array(64).keys()];
  assertEquals(
    describeRanks(ranks.slice(0, 16)),
    "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 15",
  );
  assertEquals(
    describeRanks(ranks),
    "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 and 48 more",
  );
});

Deno.test("describeFailure() says what happened to whom, or to the store", () => {
  const reason = "did not join within 1.0 s";
  assertEquals(
    describeFailure({ kind: "absent", ranks: [1, 2], reason }),
    "ranks 1 and 2 did not join within 1.0 s",
  );
  assertEquals(
    describeFailure({ kind: "store", ranks: [], reason: "store is gone" }),
    "store is gone",
  );
});

Deno.test("RankFailureError carries ranks and reason", () => {
  const failure = { kind: "died", ranks: [3], reason: "died" } as const;
  const error = new RankFailureError("move layer 2", failure);
  assertEquals(error.name, "RankFailureError");
  assertEquals(error.message, "Cannot move layer 2: rank 3 died");
  assertEquals([error.ranks, error.reason], [[3], "died"]);
  assertEquals(error.failure, failure);
});

Deno.test("GatherTimeoutError carries the missing ranks", () => {
  const error = new GatherTimeoutError("a", [3], 1500);
  assertEquals(error.name, "GatherTimeoutError");
  assertEquals(
    error.message,
    'Cannot gather "a": rank 3 has not posted within 1.5 s',
  );
  assertEquals(error.missing, [3]);
});
