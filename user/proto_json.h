/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef PW_PROTO_JSON_H
#define PW_PROTO_JSON_H

#include <protobuf-c/protobuf-c.h>

#include "json_out.h"

/*
 * A message in protobuf's JSON mapping, as OTLP wants it: lowerCamelCase, 64-bit integers as
 * strings, enums as numbers; fields that have their default are left out. For the kinds of fields
 * that are in proto/.
 */
void proto_json_write(struct json_out *j, const ProtobufCMessage *message);

#endif /* PW_PROTO_JSON_H */
