// SPDX-License-Identifier: Apache-2.0
// How full each rank is, layer by layer, as characters.

import { sparkline } from "../../report/table.ts";

/** Most ranks that are drawn one by one; more are joined to groups, the fullest of each shown. */
const MOST_COLUMNS = 64;

/** One character per rank, from empty to the fullest rank of the layer. */
export function heatRow(loads: Float64Array): string {
  const width = Math.ceil(loads.length / MOST_COLUMNS);
  const columns: number[] = [];
  for (let begin = 0; begin < loads.length; begin += width) {
    columns.push(Math.max(...loads.subarray(begin, begin + width)));
  }
  return sparkline([0, ...columns]).slice(1);
}
