// SPDX-License-Identifier: Apache-2.0

/**
 * The command line of eplb: `deno run -A cli.ts <command>`.
 *
 * @example Help of the main job
 * ```sh
 * deno run -A jsr:@eplb/eplb/cli rearrange --help
 * ```
 *
 * @module
 */

import { main } from "./lib/cli/main.ts";
import { processTerminal } from "./lib/cli/terminal.ts";

if (import.meta.main) Deno.exit(await main(Deno.args, processTerminal()));

export { main };
