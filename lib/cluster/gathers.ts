// SPDX-License-Identifier: Apache-2.0

/**
 * The store's table of gathers that are still open.
 *
 * @module
 */

import type { GatherMode } from "./protocol.ts";

/** What one rank posted. */
export interface Post {
  /** The rank's own number for this post, unique for the rank. */
  readonly id: number;
  /** The bytes it posted. */
  readonly payload: Uint8Array;
}

/** A gather that some ranks have posted to. */
export interface Gather {
  /** Whom it waits for. */
  readonly mode: GatherMode;
  /** Its name. */
  readonly name: string;
  /** What was posted, by rank, in order of arrival. */
  readonly posts: ReadonlyMap<number, Post>;
}

/**
 * Open gathers, by mode and name, in order of their generations.
 *
 * A rank's k-th post under a name belongs to generation k. Generations need no
 * numbers: a post belongs to the oldest open one without this rank, because
 * every closed one had it.
 */
export class GatherTable {
  readonly #open = new Map<string, (Gather & { posts: Map<number, Post> })[]>();

  /**
   * Adds a post to its gather.
   *
   * @param rank Who posts.
   * @param post The gather, the rank's own number for the post, and the bytes.
   * @returns The gather, with the post.
   */
  add(
    rank: number,
    post: Post & Pick<Gather, "mode" | "name">,
  ): Gather {
    const { id, mode, name, payload } = post;
    const key = `${mode} ${name}`;
    const generations = this.#open.get(key) ?? [];
    this.#open.set(key, generations);
    let gather = generations.find(({ posts }) => !posts.has(rank));
    if (gather === undefined) {
      gather = { mode, name, posts: new Map() };
      generations.push(gather);
    }
    gather.posts.set(rank, { id, payload });
    return gather;
  }

  /**
   * Finds the open gather of a post.
   *
   * @param rank Who posted.
   * @param id The rank's own number for the post.
   * @returns The gather, or `undefined` if it is closed.
   */
  find(rank: number, id: number): Gather | undefined {
    return this.list().find(({ posts }) => posts.get(rank)?.id === id);
  }

  /**
   * Finds the oldest open gather of a name.
   *
   * @param mode Whom it waits for.
   * @param name Its name.
   * @returns The gather, or `undefined` if nobody has posted to one.
   */
  oldest(mode: GatherMode, name: string): Gather | undefined {
    return this.#open.get(`${mode} ${name}`)?.[0];
  }

  /**
   * Lists the open gathers.
   *
   * @returns A copy: closing some while walking over it is safe.
   */
  list(): Gather[] {
    return [...this.#open.values()].flat();
  }

  /**
   * Forgets a gather.
   *
   * @param gather An open gather.
   */
  close(gather: Gather): void {
    const key = `${gather.mode} ${gather.name}`;
    const rest = this.#open.get(key)?.filter((other) => other !== gather) ?? [];
    if (rest.length === 0) this.#open.delete(key);
    else this.#open.set(key, rest);
  }
}
