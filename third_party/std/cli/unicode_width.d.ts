// The part of jsr:@std/cli/unicode-width that this project uses.

/** Columns that a terminal takes for a text. */
export declare function unicodeWidth(str: string): number;
