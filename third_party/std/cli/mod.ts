export { unicodeWidth } from "./unicode_width.ts";
