// SPDX-License-Identifier: Apache-2.0

/**
 * Whether all processes mean the same model.
 *
 * @module
 */
import type { Deadline, World } from "../engine/world.ts";
import { planDigest } from "../migration/digest.ts";
import type { Topology } from "../topology.ts";
import type { Model } from "./model.ts";

/** What a decision follows from beside a model and its load. */
export interface AgreementOptions {
  /** The processes that must agree. */
  readonly world: World;
  /** How long to wait for them. */
  readonly deadline: Deadline;
  /** Where the ranks are. */
  readonly topology: Topology;
  /** Settings of the state. */
  readonly settings: Readonly<Record<string, string | number>>;
}

/**
 * Compares digests of all that decisions about a model follow from, before it serves.
 *
 * @param model The model, as this process has added it.
 * @param options The processes, and the settings of the state.
 * @throws {RangeError} If processes differ; names one of them.
 */
export async function checkAgreement(
  model: Model,
  options: AgreementOptions,
): Promise<void> {
  const { world, deadline, topology, settings } = options;
  const { placement, options: { weights, objective, groups } } = model;
  const { tensorBytes, layout } = weights[0]!;
  const digest = planDigest({
    from: placement,
    to: placement,
    topology,
    tensorBytes,
    options: {
      ...settings,
      name: model.name,
      tensors: layout.moved.map(({ name }) => name).join(),
      objective: JSON.stringify(objective ?? {}),
      groups: groups ?? 1,
    },
  });
  const payload = new TextEncoder().encode(digest);
  const all = (await world.exchange("model", payload, deadline))
    .map((bytes) => new TextDecoder().decode(bytes));
  const other = all.findIndex((text) => text !== all[0]);
  if (other < 0) return;
  throw new RangeError(
    `Cannot add model "${model.name}": rank ${
      world.firstRankOf(other)
    } has another model, placement, policy, interval or number of steps than rank ${
      world.firstRankOf(0)
    }`,
  );
}
