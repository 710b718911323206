// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// libuv accepts with a NULL address. On SIGTERM it closes in Node's graceful way.
"use strict";

const http = require("http");

const pids = `${process.pid} ${process.pid}`;
const server = http.createServer((request, response) => response.end(pids));
server.keepAliveTimeout = 0;
server.listen({ host: process.argv[2], port: 0, backlog: 512 }, () => {
	console.log(JSON.stringify({ port: server.address().port }));
});
process.on("SIGTERM", () => {
	server.close(() => process.exit(0));
	server.closeIdleConnections();
});
