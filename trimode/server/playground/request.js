/** Request bodies, and the same as commands to copy. Pure. */

/** Controls of the page that are decoding options. */
export const OPTIONS = { block: 'block_length', threshold: 'threshold' };

/**
 * @param {object} settings what the page's controls say; an option that is null is the server's default
 * @param {string[]} reads options that the mode reads, as `/props` lists them
 */
export function bodyOf(settings, messages, reads, mode = settings.mode) {
  const decoding = { mode, show_drafts: true };
  for (const [control, option] of Object.entries(OPTIONS)) {
    if (settings[control] !== null && reads.includes(option)) decoding[option] = settings[control];
  }
  const system = settings.system.trim() ? [{ role: 'system', content: settings.system }] : [];
  return {
    model: settings.model,
    messages: [...system, ...messages],
    stream: true,
    stream_options: { include_usage: true },
    temperature: settings.temperature,
    seed: settings.seed,
    max_tokens: settings.maxTokens,
    decoding,
  };
}

/** The body an ordinary client would send. */
function plain(body) {
  const { stream, stream_options, ...rest } = body;
  const { show_drafts, ...decoding } = rest.decoding;
  return { ...rest, decoding };
}

export function asCurl(origin, body, key) {
  const auth = key ? ' \\\n  -H "Authorization: Bearer $TRIMODE_API_KEY"' : '';
  const json = JSON.stringify(plain(body)).replaceAll("'", "'\\''");
  return `curl ${origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d '${json}'\n`;
}

export function asPython(origin, body, key) {
  const { decoding, model, messages, ...rest } = plain(body);
  const more = Object.entries(rest).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join('');
  const auth = key ? 'os.environ["TRIMODE_API_KEY"]' : '"none"';
  return `${key ? 'import os\n\n' : ''}from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key=${auth})\n`
    + `answer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=${JSON.stringify(messages)},\n`
    + `${more}    extra_body={"decoding": ${JSON.stringify(decoding)}},\n)\nprint(answer.choices[0].message.content)\n`;
}
