// npm's @anthropic-ai/sdk: messages, streams, a tool loop.
import Anthropic from '@anthropic-ai/sdk';
import { answer, apiKey, assert, messages, model, parameters, urls } from './common.mjs';

const client = (name) => new Anthropic({ baseURL: urls[name], apiKey });
const few = { model, messages, max_tokens: 12 };
const whole = await client('real').messages.create(few);
assert.equal(whole.stop_reason, 'max_tokens');
const streamed = await client('real').messages.stream(few).finalMessage();
assert.equal(streamed.usage.output_tokens, 12);
assert.ok((await client('real').messages.countTokens({ model, messages })).input_tokens > 10);

const asked = [];
const tool = {
  name: 'weather', input_schema: parameters, parse: (input) => input,
  run: ({ city }) => { asked.push(city); return 'sunny'; },
};
const ask = { model, messages, max_tokens: 200, tools: [tool] };
const last = await client('caller').beta.messages.toolRunner(ask);
assert.equal(last.content[0].text, answer);
assert.deepEqual(asked, ['Paris']);
