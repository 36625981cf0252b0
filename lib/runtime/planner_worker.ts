// SPDX-License-Identifier: Apache-2.0
// The other thread of a WorkerPlanner.

import { messageOf } from "../engine/waiting.ts";
import { inlinePlanner } from "./planner.ts";
import {
  type AnswerMessage,
  packAnswer,
  type RequestMessage,
  unpackRequest,
} from "./planner_messages.ts";

/** The part of a worker's global scope that is used here; the types know a window's. */
const scope = globalThis as unknown as {
  onmessage: (event: MessageEvent<RequestMessage>) => void;
  postMessage(message: AnswerMessage): void;
};

scope.onmessage = async ({ data }): Promise<void> => {
  try {
    const planned = await inlinePlanner.plan(unpackRequest(data));
    scope.postMessage(packAnswer(data.id, planned));
  } catch (error) {
    scope.postMessage({ id: data.id, error: messageOf(error) });
  }
};
