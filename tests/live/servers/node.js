// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// libuv accepts with a NULL address.
"use strict";

const http = require("http");

const server = http.createServer((request, response) => {
	response.setHeader("Connection", "close");
	response.end(`${process.pid} ${process.pid}`);
});
server.listen({ host: process.argv[2], port: 0, backlog: 512 }, () => {
	console.log(JSON.stringify({ port: server.address().port }));
});
