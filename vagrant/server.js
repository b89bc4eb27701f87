// The example application: says which container answered, on port 8000 (or PORT).
// Told to stop (SIGTERM, SIGINT) it takes no new connection, finishes the requests it has, and exits.
'use strict';

const http = require('node:http');
const os = require('node:os');

const port = Number(process.env.PORT || 8000);
const graceMs = 3000; // requests that take longer than this are cut off at a stop
const id = os.hostname(); // in a container: its id, shortened to 12 characters

let stopping = false;

const server = http.createServer((request, response) => {
  if (stopping) response.setHeader('Connection', 'close');
  response.setHeader('Content-Type', 'text/plain; charset=utf-8');
  response.end(`Hello from ${id}\n`);
});

// A load balancer keeps idle connections for its next request; it, not we, should be the one to close them.
server.keepAliveTimeout = 65_000;

server.on('error', (error) => {
  console.error(`cannot listen on port ${port}: ${error.message}`);
  process.exit(1);
});

function stop(signal) {
  if (stopping) return;
  stopping = true;
  console.log(`${signal}: finishing open requests`);
  server.close(() => process.exit(0));
  server.closeIdleConnections();
  setTimeout(() => {
    console.error(`requests still open after ${graceMs} ms are cut off`);
    process.exit(0);
  }, graceMs).unref();
}

process.on('SIGTERM', stop);
process.on('SIGINT', stop);

server.listen(port, () => console.log(`${id} listens on port ${port}`));
