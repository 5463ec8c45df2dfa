// The official npm client, in this folder:
//   npm install openai
//   node chat.mjs http://127.0.0.1:8000/v1 MODEL PROMPT
import OpenAI from 'openai';

const [baseURL, model, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'none' });
const stream = await client.chat.completions.create({
  model, stream: true, temperature: 0, max_tokens: 24,
  decoding: { mode: 'linear', show_drafts: true }, // drafts are passed over by whoever does not know them
  messages: [{ role: 'user', content: prompt }],
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? '');
