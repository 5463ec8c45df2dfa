// What the scripts of npm's clients share: servers, what is asked, and what is expected.
import assert from 'node:assert/strict';

export { assert };
export const urls = JSON.parse(process.env.TRIMODE_URLS);
export const model = 'trimode-model';
export const apiKey = 'none';
export const prompt = 'What is the weather in Paris?';
export const answer = 'It is sunny in Paris.';
export const pet = { name: 'Ada', kind: 'cat', homes: [{ city: 'Paris', rooms: 3 }] };
export const messages = [{ role: 'user', content: prompt }];
export const parameters = {
  type: 'object', properties: { city: { type: 'string' } }, required: ['city'],
};
export const openaiURL = (name) => `${urls[name]}/v1`;
