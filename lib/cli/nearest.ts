// SPDX-License-Identifier: Apache-2.0

/** The name a mistyped one probably means; undefined if none is near. */
export function nearest(
  name: string,
  names: readonly string[],
): string | undefined {
  const { length } = name;
  // A third of the letters; two are a swap, which four letters can bear.
  const limit = Math.max(length >= 4 ? 2 : 1, Math.floor(length / 3));
  let best: string | undefined;
  let least = limit + 1;
  for (const candidate of names) {
    const distance = editDistance(name, candidate);
    if (distance < least) [best, least] = [candidate, distance];
  }
  return best;
}

/** Levenshtein distance: insertions, deletions, substitutions. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
