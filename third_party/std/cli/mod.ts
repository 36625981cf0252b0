export { type ParseOptions, parseArgs } from "./parse_args.ts";
