/** Files below cpp/ that building the library needs. */
export const NATIVE_SOURCES: readonly string[] = [];
