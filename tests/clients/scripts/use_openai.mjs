// npm's openai: chat, Responses, streams, a tool loop.
import OpenAI from 'openai';
import { answer, apiKey, assert, messages, model, openaiURL, parameters, prompt } from './common.mjs';

const client = (name) => new OpenAI({ baseURL: openaiURL(name), apiKey });
const few = { model, messages, temperature: 0, max_tokens: 12 };
const whole = await client('real').chat.completions.create(few);
let text = '';
for await (const chunk of await client('real').chat.completions.create({ ...few, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? '';
}
assert.equal(text, whole.choices[0].message.content);

const asked = [];
const tool = {
  name: 'weather', description: 'The weather.', parameters, parse: JSON.parse,
  function: ({ city }) => { asked.push(city); return 'sunny'; },
};
const loop = client('caller').chat.completions.runTools({
  model, messages, stream: true, tools: [{ type: 'function', function: tool }],
});
assert.equal(await loop.finalContent(), answer);
assert.deepEqual(asked, ['Paris']);

const flat = { type: 'function', name: 'weather', parameters, strict: false };
const stream = client('caller').responses.stream({ model, input: prompt, tools: [flat] });
const kinds = [];
for await (const event of stream) kinds.push(event.type);
assert.ok(kinds.includes('response.function_call_arguments.done'));
const { output } = await stream.finalResponse();
const call = output.find((item) => item.type === 'function_call');
const result = { type: 'function_call_output', call_id: call.call_id, output: 'sunny' };
const last = await client('caller').responses.create({
  model, tools: [flat], input: [...messages, ...output, result],
});
assert.equal(last.output_text, answer);
