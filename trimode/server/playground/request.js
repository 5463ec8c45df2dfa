/** Request bodies, and the same as commands to copy. Pure. */

/** Controls of the page that are decoding options. */
export const OPTIONS = { block: 'block_length', threshold: 'threshold' };

/** What a message says: a text, after the pictures that it is about. */
export function contentOf(text, urls) {
  const parts = urls.map((url) => ({ type: 'image_url', image_url: { url } }));
  return urls.length ? [...parts, ...(text ? [{ type: 'text', text }] : [])] : text;
}

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

/** JSON in which `written(start, name)` stands for each picture: files are too long for a command. */
function withFiles(json, names, written) {
  for (const [url, name] of names) {
    json = json.replaceAll(JSON.stringify(url), () => written(url.slice(0, url.indexOf(',') + 1), name));
  }
  return json;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** @param {Map<string, string>} names of the files that pictures came from, by their URL */
export function asCurl(origin, body, key, names = new Map()) {
  const auth = key ? ' \\\n  -H "Authorization: Bearer $TRIMODE_API_KEY"' : '';
  const whole = JSON.stringify(plain(body));
  if ([...names.keys()].some((url) => whole.includes(url))) { // the shell reads the files
    const json = withFiles(whole.replace(/[\\$`]/g, '\\$&'), names, (start, name) => `"${start}$(base64 < ${quoted(name)} | tr -d '\\n')"`);
    return `curl ${origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d @- <<END\n${json}\nEND\n`;
  }
  const json = whole.replaceAll("'", "'\\''");
  return `curl ${origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d '${json}'\n`;
}

export function asPython(origin, body, key, names = new Map()) {
  const { decoding, model, messages, ...rest } = plain(body);
  const more = Object.entries(rest).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join('');
  const auth = key ? 'os.environ["TRIMODE_API_KEY"]' : '"none"';
  const asked = JSON.stringify(messages);
  const said = withFiles(asked, names, (start, name) => `"${start}" + base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()`);
  const modules = [...(said === asked ? [] : ['base64']), ...(key ? ['os'] : [])].map((name) => `import ${name}\n`).join('');
  return `${modules && `${modules}\n`}from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key=${auth})\n`
    + `answer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=${said},\n`
    + `${more}    extra_body={"decoding": ${JSON.stringify(decoding)}},\n)\nprint(answer.choices[0].message.content)\n`;
}
