#include "server/page.h"

namespace isobit::server {

std::string_view page_html() {
  return R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>isobit</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --line: #8885; --soft: #8882; --good: #1a7f37; --bad: #c1121f; }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 52rem; padding: 1rem; }
  header { display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap; }
  h1 { font-size: 1.3rem; margin: 0; }
  code, .figures { font: 0.8rem/1.5 ui-monospace, monospace; opacity: 0.8; overflow-wrap: anywhere; }
  details { margin: 0.6rem 0; }
  .settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 0.6rem; padding: 0.5rem 0; }
  label { display: grid; font-size: 0.8rem; }
  input, textarea, button { font: inherit; padding: 0.4rem 0.6rem; border: 1px solid var(--line); border-radius: 0.4rem; }
  .turn { border-left: 3px solid var(--line); margin: 1rem 0; padding: 0 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
  .turn.user { background: var(--soft); padding: 0.5rem 0.8rem; }
  .below { display: flex; gap: 0.8rem; align-items: center; flex-wrap: wrap; margin: 0 0 1rem; }
  .equal { color: var(--good); } .different { color: var(--bad); }
  form { display: flex; gap: 0.5rem; position: sticky; bottom: 0; padding: 0.5rem 0; background: Canvas; }
  textarea { flex: 1; resize: vertical; min-height: 2.6rem; }
</style>
</head>
<body>
<header><h1>isobit</h1><code id="fingerprint">…</code></header>
<details><summary>Settings</summary>
  <div class="settings">
    <label>Temperature<input id="temperature" type="number" min="0" max="100" step="0.1" value="0.8"></label>
    <label>Top p<input id="top_p" type="number" min="0.01" max="1" step="0.01" value="0.95"></label>
    <label>Seed<input id="seed" type="number" min="0" step="1" value="42"></label>
    <label>Longest answer<input id="max_tokens" type="number" min="1" step="1" value="256"></label>
    <label>API key<input id="key" type="password" autocomplete="off"></label>
  </div>
</details>
<main id="talk" aria-live="polite"></main>
<form id="form"><textarea id="text" rows="1" placeholder="Ask something" aria-label="Message" autofocus></textarea>
<button id="send">Send</button></form>
<script>
'use strict';
const $ = id => document.getElementById(id);
const messages = [];
let stopping = null;

const headers = () => ({'Content-Type': 'application/json', ...($('key').value && {Authorization: 'Bearer ' + $('key').value})});
const number = id => Number($(id).value);

function settings() {
  return {temperature: number('temperature'), top_p: number('top_p'), seed: number('seed'), max_tokens: number('max_tokens')};
}

function add(parent, kind, name, text = '') {
  const e = document.createElement(kind);
  e.className = name;
  e.textContent = text;
  parent.append(e);
  return e;
}

// FNV-1a over every token's id and the bits of its log-probability.
class Digest {
  constructor() { this.value = 0xcbf29ce484222325n; this.view = new DataView(new ArrayBuffer(8)); }
  add(entry) {
    this.view.setInt32(0, entry.token_id, true);
    this.view.setFloat32(4, entry.logprob, true);
    for (let i = 0; i < 8; i++)
      this.value = BigInt.asUintN(64, (this.value ^ BigInt(this.view.getUint8(i))) * 0x100000001b3n);
  }
  get text() { return this.value.toString(16).padStart(16, '0'); }
}

// One answer as a stream: shows each piece, returns text, tokens and digest.
async function ask(body, show, signal) {
  const response = await fetch('v1/chat/completions', {
    method: 'POST', headers: headers(), signal, body: JSON.stringify({...body, stream: true, logprobs: true})});
  if (!response.ok) throw new Error((await response.json()).error.message);
  const answer = {text: '', tokens: 0, digest: new Digest(), reason: ''};
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = '';;) {
    const {value, done} = await reader.read();
    if (done) break;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        answer.text += choice.delta.content || '';
        for (const entry of choice.logprobs?.content || []) { answer.digest.add(entry); answer.tokens++; }
        answer.reason = choice.finish_reason || answer.reason;
      }
      show(answer);
    }
  }
  return answer;
}

// The same request again, among others that differ from it and from each other.
async function prove(body, first, place) {
  place.textContent = 'computing it again among 7 other requests …';
  place.className = 'figures';
  const others = Array.from({length: 7}, (_, i) => ask(
    {...body, seed: body.seed + 1 + i, temperature: 1, messages: [{role: 'user', content: 'Neighbour ' + i}, ...body.messages]}, () => {}));
  const again = await ask(body, () => {});
  await Promise.all(others);
  const equal = again.digest.text === first.digest.text && again.tokens === first.tokens;
  place.textContent = `${first.digest.text} alone, ${again.digest.text} in a batch of 8: ` +
    (equal ? `equal, ${again.tokens} tokens and log-probabilities` : 'DIFFERENT');
  place.className = 'figures proof ' + (equal ? 'equal' : 'different');
}

function finish(body, answer, started, box) {
  const below = add(box, 'div', 'below');
  const seconds = (performance.now() - started) / 1000;
  add(below, 'span', 'figures', `${answer.tokens} tokens, ${(answer.tokens / seconds).toFixed(1)} tok/s, ${answer.reason}`);
  const button = add(below, 'button', 'prove', 'Prove it');
  const place = add(below, 'span', 'figures');
  button.onclick = async () => {
    button.disabled = true;
    try { await prove(body, answer, place); } catch (e) { place.textContent = e.message; place.className = 'figures different'; }
    button.disabled = false;
  };
}

async function send(text) {
  messages.push({role: 'user', content: text});
  add($('talk'), 'div', 'turn user', text);
  const box = add($('talk'), 'section', '');
  const shown = add(box, 'div', 'turn assistant');
  const rate = add(box, 'span', 'figures');
  const body = {...settings(), messages: [...messages]};
  const started = performance.now();
  stopping = new AbortController();
  $('send').textContent = 'Stop';
  try {
    const answer = await ask(body, a => {
      shown.textContent = a.text;
      rate.textContent = `${(1000 * a.tokens / (performance.now() - started)).toFixed(1)} tok/s`;
      scrollTo(0, document.body.scrollHeight);
    }, stopping.signal);
    rate.remove();
    messages.push({role: 'assistant', content: answer.text});
    finish(body, answer, started, box);
  } catch (e) {
    rate.textContent = e.name === 'AbortError' ? 'stopped' : e.message;
    messages.pop();
  }
  stopping = null;
  $('send').textContent = 'Send';
}

$('form').onsubmit = event => {
  event.preventDefault();
  if (stopping) return stopping.abort();
  const text = $('text').value.trim();
  if (!text) return;
  $('text').value = '';
  send(text);
};
$('text').onkeydown = event => {
  if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); $('form').requestSubmit(); }
};
async function identify() {
  try {
    const model = (await (await fetch('v1/models', {headers: headers()})).json()).data[0];
    $('fingerprint').textContent = `${model.id} · ${model.fingerprint}`;
  } catch { $('fingerprint').textContent = 'not ready, or a key is needed (see Settings)'; }
}
$('key').onchange = identify;
identify();
</script>
</body>
</html>
)html";
}

}  // namespace isobit::server
