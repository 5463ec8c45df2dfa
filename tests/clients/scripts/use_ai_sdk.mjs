// Vercel's AI SDK: @ai-sdk/openai (Responses, its default) and @ai-sdk/openai-compatible.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';
import { answer, apiKey, assert, model, openaiURL, pet, prompt } from './common.mjs';

const compatible = (name) => createOpenAICompatible({
  name: 'trimode', baseURL: openaiURL(name), apiKey, supportsStructuredOutputs: true,
})(model);
const responses = (name) => createOpenAI({ baseURL: openaiURL(name), apiKey })(model);
const chat = (name) => createOpenAI({ baseURL: openaiURL(name), apiKey }).chat(model);
const schema = z.object({
  name: z.string(), kind: z.enum(['cat', 'dog']),
  homes: z.array(z.object({ city: z.string(), rooms: z.number().nullable() })),
});
for (const of of [compatible, responses, chat]) {
  const few = { model: of('real'), prompt, temperature: 0, maxOutputTokens: 16 };
  const whole = await generateText(few);
  assert.equal(await streamText(few).text, whole.text);

  const asked = [];
  const weather = tool({
    inputSchema: z.object({ city: z.string(), more: z.record(z.string(), z.string()).optional() }),
    execute: async ({ city }) => { asked.push(city); return 'sunny'; },
  });
  const loop = { model: of('caller'), prompt, tools: { weather }, stopWhen: stepCountIs(3) };
  assert.equal((await generateText(loop)).text, answer);
  assert.equal((await streamText(loop).steps).at(-1).text, answer);
  assert.deepEqual(asked, ['Paris', 'Paris']);
  assert.deepEqual((await generateObject({ model: of('typed'), prompt, schema })).object, pet);
}
