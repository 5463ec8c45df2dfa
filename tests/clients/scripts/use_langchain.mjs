// @langchain/openai: chat and Responses; streams, tools, typed answers.
import { tool } from '@langchain/core/tools';
import { HumanMessage, ToolMessage } from '@langchain/core/messages';
import { ChatOpenAI } from '@langchain/openai';
import { z } from 'zod';
import { answer, apiKey, assert, model, openaiURL, pet, prompt } from './common.mjs';

const schema = z.object({
  name: z.string(), kind: z.enum(['cat', 'dog']),
  homes: z.array(z.object({ city: z.string(), rooms: z.number().nullable() })),
});
const weather = tool(() => 'sunny', { name: 'weather', schema: z.object({ city: z.string() }) });
for (const useResponsesApi of [false, true]) {
  const chat = (name, more = {}) => new ChatOpenAI({
    model, apiKey, useResponsesApi, configuration: { baseURL: openaiURL(name) }, ...more,
  });
  const few = chat('real', { temperature: 0, maxTokens: 16 });
  const whole = await few.invoke(prompt);
  let text = '';
  for await (const part of await few.stream(prompt)) text += part.text;
  assert.equal(text, whole.text);

  const caller = chat('caller').bindTools([weather]);
  const first = await caller.invoke(prompt);
  assert.deepEqual(first.tool_calls[0].args, { city: 'Paris' });
  const result = new ToolMessage({ content: 'sunny', tool_call_id: first.tool_calls[0].id });
  assert.equal((await caller.invoke([new HumanMessage(prompt), first, result])).text, answer);
  const typed = chat('typed').withStructuredOutput(schema, { method: 'jsonSchema' });
  assert.deepEqual(await typed.invoke(prompt), pet);
}
