/** A strict reader of Prometheus' text exposition format 0.0.4. */

export interface ParsedSample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface ParsedFamily {
  readonly help: string;
  readonly type: string;
  readonly samples: ParsedSample[];
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*/;
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"/;
const NUMBER = /^(?:[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf)|NaN)$/;

/** Reads a whole page; throws at the first line that breaks a rule. */
export function parsePrometheus(text: string): Map<string, ParsedFamily> {
  const families = new Map<string, ParsedFamily>();
  const seen = new Set<string>();
  let current = "";
  let help: [string, string] | undefined;
  if (text !== "" && !text.endsWith("\n")) {
    fail("no line break at the end", text);
  }
  for (const line of text.split("\n").slice(0, -1)) {
    const comment = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line);
    if (comment?.[1] === "HELP") {
      if (families.has(comment[2]!)) fail("second HELP", line);
      help = [comment[2]!, unescape(comment[3]!, line)];
    } else if (comment?.[1] === "TYPE") {
      current = comment[2]!;
      if (families.has(current) || help?.[0] !== current) fail("TYPE", line);
      if (!["counter", "gauge", "histogram"].includes(comment[3]!)) {
        fail("unknown type", line);
      }
      families.set(current, { help: help![1], type: comment[3]!, samples: [] });
    } else {
      const sample = parseSample(line);
      const family = families.get(current) ?? fail("no TYPE", line);
      const allowed = family.type === "histogram"
        ? [`${current}_bucket`, `${current}_sum`, `${current}_count`]
        : [current];
      if (!allowed.includes(sample.name)) fail("sample of another", line);
      const key = line.slice(0, line.lastIndexOf(" "));
      if (seen.has(key)) fail("series twice", line);
      seen.add(key);
      family.samples.push(sample);
    }
  }
  for (const [name, family] of families) {
    if (family.samples.length === 0) fail("no samples", name);
    if (family.type === "histogram") checkHistogram(name, family);
    if (family.type === "counter") {
      if (family.samples.some(({ value }) => !(value >= 0))) {
        fail("value", name);
      }
    }
  }
  return families;
}

function parseSample(line: string): ParsedSample {
  const name = NAME.exec(line)?.[0] ?? fail("no name", line);
  let rest = line.slice(name.length);
  const labels: Record<string, string> = {};
  if (rest.startsWith("{")) {
    do {
      rest = rest.slice(1);
      const match = LABEL.exec(rest) ?? fail("no label", line);
      if (Object.hasOwn(labels, match[1]!)) fail("label twice", line);
      labels[match[1]!] = unescape(match[2]!, line);
      rest = rest.slice(match[0].length);
    } while (rest.startsWith(","));
    if (!rest.startsWith("}")) fail("no closing brace", line);
    rest = rest.slice(1);
  }
  if (!rest.startsWith(" ") || !NUMBER.test(rest.slice(1))) fail("value", line);
  return { name, labels, value: number(rest.slice(1)) };
}

/** Every series has ascending bounds, rising counts, and ends in +Inf, _sum, _count. */
function checkHistogram(name: string, { samples }: ParsedFamily): void {
  let bound = -Infinity;
  let count = 0;
  let expected = "bucket";
  for (const { name: sample, labels, value } of samples) {
    if (sample !== `${name}_${expected}`) fail(`not ${expected}`, sample);
    if (expected === "bucket") {
      const le = number(labels["le"] ?? fail("no le", sample));
      if (!(le > bound) || value < count) fail("bucket order", sample);
      [bound, count] = [le, value];
      if (le === Infinity) expected = "sum";
    } else if (expected === "sum") {
      expected = "count";
    } else {
      if (value !== count) fail("count", sample);
      [bound, count, expected] = [-Infinity, 0, "bucket"];
    }
  }
  if (expected !== "bucket") fail("unfinished histogram", name);
}

function number(text: string): number {
  return Number(text.replace("Inf", "Infinity"));
}

function unescape(text: string, line: string): string {
  return text.replaceAll(
    /\\(.?)/g,
    (_, char) =>
      char === "n"
        ? "\n"
        : char === "\\" || char === '"'
        ? char
        : fail("escape", line),
  );
}

function fail(what: string, line: string): never {
  throw new SyntaxError(`${what}: ${JSON.stringify(line)}`);
}
