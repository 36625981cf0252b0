import type {
  CycleDecided,
  CycleEnded,
  CycleStarted,
  LayersCommitted,
} from "../../lib/runtime/events.ts";

/** Events of a model "main" at step 3000, with what a test sets. */
export function started(set: Partial<CycleStarted> = {}): CycleStarted {
  return {
    type: "cycle-started",
    model: "main",
    cycle: 1,
    step: 3000,
    trigger: "interval",
    ...set,
  };
}

export function decided(set: Partial<CycleDecided> = {}): CycleDecided {
  return {
    type: "cycle-decided",
    model: "main",
    cycle: 1,
    step: 3000,
    tokens: 1200,
    rankTokens: { mean: 150, max: 400 },
    balancednessBefore: new Float64Array([0.5, 0.25]),
    balancednessAfter: new Float64Array([1, 0.75]),
    decisions: [],
    movedSlots: 3,
    loadSeconds: 0.002,
    planSeconds: 0.04,
    ...set,
  };
}

export function committed(set: Partial<LayersCommitted> = {}): LayersCommitted {
  return {
    type: "layers-committed",
    model: "main",
    cycle: 1,
    step: 3001,
    firstLayer: 0,
    layers: 2,
    commitSeconds: 0.0002,
    stallSeconds: 0.0003,
    ...set,
  };
}

export function ended(set: Partial<CycleEnded> = {}): CycleEnded {
  return {
    type: "cycle-ended",
    model: "main",
    cycle: 1,
    step: 3002,
    outcome: "committed",
    reason: undefined,
    failedRank: undefined,
    committedLayers: 2,
    layers: 2,
    moves: {
      unchanged: 5,
      sameRank: 1,
      duplicate: 2,
      sameNode: 3,
      crossNode: 4,
    },
    bytes: { sameRank: 300, sameNode: 3000, crossNode: 4000 },
    steps: 3,
    moveSeconds: 0.2,
    stallSeconds: 0.0006,
    seconds: 0.5,
    ...set,
  };
}
