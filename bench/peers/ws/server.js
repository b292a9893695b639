// Peer: `ws` on Node. A broadcast builds its frame once and writes the same buffers to every socket.
//
// Install: npm install ws
// Start:   NODE_PATH=<where it was installed>/node_modules node server.js --port 0
//
// A text that begins with {"type" is a command (login, direct, join, publish, broadcast); every other one is broadcast
// as it is. Node offers no way to set SO_SNDBUF, so that --sndbuf is accepted and has no effect.
'use strict';

const http = require('http');
const { WebSocketServer, Sender } = require('ws');

const everyone = new Set();
const users = new Map();
const channels = new Map();

function textFrame(text) {
  const data = Buffer.isBuffer(text) ? text : Buffer.from(text);
  return Buffer.concat(Sender.frame(data, { fin: true, rsv1: false, opcode: 1, mask: false, readOnly: false }));
}

function sendTo(receivers, frame) {
  for (const receiver of receivers) if (receiver.readyState === 1) receiver._socket.write(frame);
}

function push(type, from, command) {
  return JSON.stringify({ type, channel: command.channel, from, data: command.data });
}

function obey(client, command) {
  switch (command.type) {
    case 'login':
      client.user = command.user;
      users.set(client.user, client);
      client.send('{"type":"welcome"}');
      return;
    case 'direct': {
      const receiver = users.get(command.to);
      if (receiver) receiver.send(push('direct', client.user, command));
      break;
    }
    case 'broadcast':
      sendTo(everyone, textFrame(push('broadcast', client.user, command)));
      break;
    case 'join':
      if (!channels.has(command.channel)) channels.set(command.channel, new Set());
      channels.get(command.channel).add(client);
      client.joined.push(command.channel);
      break;
    case 'publish':
      sendTo(channels.get(command.channel) || [], textFrame(push('publication', client.user, command)));
      break;
  }
  if (command.id !== undefined) client.send(JSON.stringify({ type: 'ok', id: command.id }));
}

const COMMAND = Buffer.from('{"type"');
const server = http.createServer();
const wss = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: 1 << 20 });
wss.on('connection', (client) => {
  client.user = '';
  client.joined = [];
  everyone.add(client);
  client.on('message', (data) => {
    if (data.subarray(0, COMMAND.length).equals(COMMAND)) obey(client, JSON.parse(data));
    else sendTo(everyone, textFrame(data));
  });
  client.on('error', () => client.terminate());
  client.on('close', () => {
    everyone.delete(client);
    if (users.get(client.user) === client) users.delete(client.user);
    for (const channel of client.joined) channels.get(channel).delete(client);
  });
});

const at = process.argv.indexOf('--port');
server.listen({ port: at < 0 ? 0 : Number(process.argv[at + 1]), host: '127.0.0.1', backlog: 4096 }, () => {
  console.log('listening', server.address().port);
});
