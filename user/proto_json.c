// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto_json.h"

static void camel_case(const char *name, char *to, size_t size)
{
	char *end = to + size - 1;

	for (; *name && to < end; name++)
		if (*name == '_' && name[1])
			*to++ = toupper((unsigned char)*++name);
		else
			*to++ = *name;
	*to = '\0';
}

static void write_value(
	struct json_out *j, const char *key, const ProtobufCFieldDescriptor *f, const void *at)
{
	char text[32];

	switch (f->type) {
	case PROTOBUF_C_TYPE_MESSAGE:
		json_open(j, key, '{');
		proto_json_write(j, *(const ProtobufCMessage *const *)at);
		json_close(j, '}');
		break;
	case PROTOBUF_C_TYPE_STRING:
		json_str(j, key, *(const char *const *)at);
		break;
	case PROTOBUF_C_TYPE_ENUM:
		json_i64(j, key, *(const int *)at);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		json_bool(j, key, *(const protobuf_c_boolean *)at);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		json_double(j, key, *(const double *)at);
		break;
	case PROTOBUF_C_TYPE_FIXED64:
		snprintf(text, sizeof(text), "%" PRIu64, *(const uint64_t *)at);
		json_str(j, key, text);
		break;
	default: /* INT64, SFIXED64 */
		snprintf(text, sizeof(text), "%" PRId64, *(const int64_t *)at);
		json_str(j, key, text);
	}
}

static size_t size_of(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_MESSAGE:
	case PROTOBUF_C_TYPE_STRING:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_ENUM:
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(int);
	default:
		return sizeof(uint64_t);
	}
}

static bool is_default(const ProtobufCFieldDescriptor *f, const void *at)
{
	static const uint64_t zero;

	if (f->type == PROTOBUF_C_TYPE_STRING)
		return !**(const char *const *)at;
	return memcmp(at, &zero, size_of(f)) == 0;
}

static void write_list(
	struct json_out *j, const char *key, const ProtobufCFieldDescriptor *f, const void *list, size_t n)
{
	json_open(j, key, '[');
	for (size_t i = 0; i < n; i++)
		write_value(j, NULL, f, (const char *)list + i * size_of(f));
	json_close(j, ']');
}

void proto_json_write(struct json_out *j, const ProtobufCMessage *message)
{
	const char *base = (const char *)message;

	for (unsigned int i = 0; i < message->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &message->descriptor->fields[i];
		const void *at = base + f->offset, *quantifier = base + f->quantifier_offset;
		char key[64];

		camel_case(f->name, key, sizeof(key));
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			if (*(const size_t *)quantifier)
				write_list(j, key, f, *(const void *const *)at,
					*(const size_t *)quantifier);
		} else if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF ?
				   *(const uint32_t *)quantifier == f->id :
				   !is_default(f, at)) {
			write_value(j, key, f, at);
		}
	}
}
