/**
 * Keeping the parts of a plan that save more time than they cost.
 *
 * @module
 */
import { checkInteger, show } from "../_check.ts";
import { checkSameShape } from "../_physical_map.ts";
import { planMigration } from "../migration/plan.ts";
import { lowerBoundSeconds, traffic } from "../migration/traffic.ts";
import { Placement } from "../placement.ts";
import { carryActive } from "./_carry.ts";
import { checkInput, isDense, type PolicyJob } from "./_job.ts";
import { noiseFloor } from "./_noise.ts";
import { rankCosts, type RankObjective, rankObjective } from "./_rank_cost.ts";
import { Splitter } from "./_splitter.ts";
import type { PolicyInput, PolicyPlan } from "./policy.ts";
import { lostExpert } from "./resplit.ts";
