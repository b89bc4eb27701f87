// Calls http://127.0.0.1:8080/ with the host name CALLS, and says on port 8000 what it got since it was last told to begin (POST).
'use strict';

const http = require('node:http');

const pauseMs = 10; // between two calls
const limitMs = 10_000; // of one call
// Connections that are kept, and one for each call.
const agents = [true, true, false, false].map((keepAlive) => new http.Agent({ keepAlive, maxSockets: 1 }));

let got;
const begin = () => { got = { served: {}, failures: [] }; };
begin();

function call(agent) {
  const into = got;
  let isOver = false;
  const over = (failure) => {
    if (isOver) return;
    isOver = true;
    if (failure) into.failures.push(failure);
    setTimeout(call, pauseMs, agent);
  };
  const options = { host: '127.0.0.1', port: 8080, headers: { Host: process.env.CALLS }, agent, timeout: limitMs };
  const request = http.get(options, (response) => {
    let body = '';
    response.setEncoding('utf8');
    response.on('data', (part) => { body += part; });
    response.on('error', (error) => over(error.message));
    response.on('end', () => {
      if (response.statusCode !== 200) return over(`status ${response.statusCode}`);
      into.served[body] = (into.served[body] || 0) + 1;
      return over();
    });
  });
  request.on('timeout', () => request.destroy(new Error(`no reply in ${limitMs} ms`)));
  request.on('error', (error) => over(error.message));
}
agents.forEach(call);

http.createServer((request, response) => {
  if (request.method === 'POST') begin();
  response.end(JSON.stringify(got));
}).listen(8000);
