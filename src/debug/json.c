/* JSON as the dumps have it: one object of "NAME": "0x..." or number; an inner object only groups. */
#include "debug/check.h"

#include <ctype.h>
#include <stdlib.h>

int json_error(struct json *j, const char *what) { return error_set(j->err, "line %u: %s", j->line, what); }

static void json_blank(struct json *j)
{
    for (; j->p < j->end && isspace((unsigned char)*j->p); j->p++)
        j->line += *j->p == '\n';
}

static bool json_take(struct json *j, char c)
{
    json_blank(j);
    if (j->p == j->end || *j->p != c)
        return false;
    j->p++;
    return true;
}

static int json_string(struct json *j, char *buf, size_t size)
{
    size_t n = 0;
    if (!json_take(j, '"'))
        return json_error(j, "expected a string in double quotes");
    for (; j->p < j->end && *j->p != '"'; j->p++) {
        if (*j->p == '\n' || *j->p == '\\' || n + 1 >= size)
            return json_error(j, "a name or value that is too long or has an escape in it");
        buf[n++] = *j->p;
    }
    buf[n] = 0;
    if (j->p == j->end)
        return json_error(j, "the text ends within a string");
    j->p++;
    return 0;
}

static int json_number(struct json *j, const char *text, u64 *value)
{
    char *end;
    /* Decimal or 0x; a leading 0 does not make it octal. */
    bool hex = text[0] == '0' && (text[1] | 0x20) == 'x';
    if (hex ? !isxdigit((unsigned char)text[2]) || strlen(text) > 18 : !isdigit((unsigned char)text[0]) || strlen(text) > 19)
        return json_error(j, "a value that is no number of 64 bits, expected \"0x...\" or digits");
    *value = strtoull(text, &end, hex ? 16 : 10);
    return *end ? json_error(j, "a value that is no number, expected \"0x...\" or digits") : 0;
}

static bool word_byte(char c) { return isalnum((unsigned char)c) || c == '_'; }

static int json_object(struct json *j)
{
    char name[96], text[96];
    if (!json_take(j, '{'))
        return json_error(j, "expected {");
    if (++j->depth > 8)
        return json_error(j, "objects nested too deeply");
    if (json_take(j, '}'))
        return j->depth--, 0;
    do {
        u64 value = 0;
        if (json_string(j, name, sizeof(name)))
            return -1;
        if (!json_take(j, ':'))
            return json_error(j, "expected : after a name");
        json_blank(j);
        if (j->p < j->end && *j->p == '{') {
            if (json_object(j))
                return -1;
            continue;
        }
        if (j->p < j->end && *j->p == '"') {
            if (json_string(j, text, sizeof(text)))
                return -1;
        } else {
            size_t n = 0;
            for (; j->p < j->end && (word_byte(*j->p) || strchr("+-.", *j->p)) && *j->p && n + 1 < sizeof(text); j->p++)
                text[n++] = *j->p;
            text[n] = 0;
            if (!strcmp(text, "null"))
                continue;
        }
        if (json_number(j, text, &value) || j->set(j, name, value))
            return -1;
    } while (json_take(j, ','));
    if (!json_take(j, '}'))
        return json_error(j, "expected , or }");
    j->depth--;
    return 0;
}

int json_read(struct json *j)
{
    json_blank(j);
    j->first_line = j->line;
    if (json_object(j))
        return -1;
    unsigned last = j->line;
    json_blank(j);
    if (j->p != j->end)
        return json_error(j, "something follows the object");
    j->line = last;
    return 0;
}
