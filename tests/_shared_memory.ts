// What jobs leave behind in shared memory.

/** Names of this project's shared memory on this machine. */
export function sharedMemory(): Set<string> {
  const names = [...Deno.readDirSync("/dev/shm")].map(({ name }) => name);
  return new Set(names.filter((name) => name.startsWith("eplb-")));
}

/**
 * The shared memory that is there but was not before. Other tests make some as
 * well: what goes away within seconds is theirs, what a job has lost stays.
 */
export async function leftBehind(
  before: ReadonlySet<string>,
): Promise<string[]> {
  let left = sharedMemory().difference(before);
  for (let i = 0; left.size > 0 && i < 100; i++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    left = left.intersection(sharedMemory());
  }
  return [...left];
}
