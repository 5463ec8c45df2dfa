// npm's ollama: list, show, chat, generate, streams, tools, typed answers.
import { Ollama } from 'ollama';
import { answer, assert, messages, model, parameters, pet, prompt, urls } from './common.mjs';

const client = (name) => new Ollama({ host: urls[name] });
const few = { model, options: { temperature: 0, num_predict: 12 } };
assert.ok((await client('real').list()).models.some((one) => one.name === model));
assert.ok((await client('real').show({ model })).capabilities.includes('tools'));
const whole = await client('real').chat({ ...few, messages });
let text = '';
for await (const part of await client('real').chat({ ...few, messages, stream: true })) {
  text += part.message.content;
}
assert.equal(text, whole.message.content);
assert.equal((await client('real').generate({ ...few, prompt })).response, text);

const tools = [{ type: 'function', function: { name: 'weather', parameters } }];
const first = await client('caller').chat({ model, messages, tools });
assert.deepEqual(first.message.tool_calls[0].function.arguments, { city: 'Paris' });
const result = { role: 'tool', tool_name: 'weather', content: 'sunny' };
const turns = [...messages, first.message, result];
const last = await client('caller').chat({ model, messages: turns, tools });
assert.equal(last.message.content, answer);
const format = {
  type: 'object', properties: { name: { type: 'string' }, kind: { enum: ['cat', 'dog'] } },
  required: ['name', 'kind'], additionalProperties: true,
};
const typed = await client('typed').chat({ model, messages, format });
assert.deepEqual(JSON.parse(typed.message.content), pet);
