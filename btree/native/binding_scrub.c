/* Methods of Store: scrub, and the list of damage. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DAMAGES_PER_STEP_MAX 4096u

/* Between steps a position is bytes: the fields, then the key. */
#define POSITION_FIXED_LENGTH 28u

static void save(uint8_t *to, uint64_t value, unsigned length)
{
    for (unsigned at = 0; at < length; at++) {
        to[at] = (uint8_t)(value >> (8 * at));
    }
}

static uint64_t load(const uint8_t *from, unsigned length)
{
    uint64_t value = 0;

    for (unsigned at = 0; at < length; at++) {
        value |= (uint64_t)from[at] << (8 * at);
    }
    return value;
}

static bool position_decode(const uint8_t *bytes, Py_ssize_t length, struct scrub_position *out)
{
    memset(out, 0, sizeof *out);
    if (length == 0) {
        return true;
    }
    if (length < (Py_ssize_t)POSITION_FIXED_LENGTH
        || length > (Py_ssize_t)(POSITION_FIXED_LENGTH + STORE_KEY_LENGTH_MAX)) {
        return false;
    }
    out->phase = (uint32_t)load(bytes, 4);
    out->chain_id = load(bytes + 4, 8);
    out->floor_epoch = load(bytes + 12, 8);
    out->object_id = load(bytes + 20, 8);
    out->key_length = (uint16_t)((size_t)length - POSITION_FIXED_LENGTH);
    memcpy(out->key, bytes + POSITION_FIXED_LENGTH, out->key_length);
    return true;
}

static PyObject *position_encode(const struct scrub_position *position)
{
    uint8_t bytes[POSITION_FIXED_LENGTH + STORE_KEY_LENGTH_MAX];

    save(bytes, position->phase, 4);
    save(bytes + 4, position->chain_id, 8);
    save(bytes + 12, position->floor_epoch, 8);
    save(bytes + 20, position->object_id, 8);
    memcpy(bytes + POSITION_FIXED_LENGTH, position->key, position->key_length);
    return PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)(POSITION_FIXED_LENGTH + position->key_length));
}

static PyObject *damage_object(const struct store_damage *damage)
{
    static const char *kinds[] = {"", "superblock", "bitmap", "node copy", "node", "data", "read", "journal"};

    return Py_BuildValue("{s:s,s:O,s:i,s:K,s:I,s:I,s:K,s:K,s:K,s:K,s:K,s:y#,s:y#}",
                         "kind", kinds[damage->kind], "repaired", damage->repaired ? Py_True : Py_False,
                         "copy", (int)damage->copy, "address", (unsigned long long)damage->address,
                         "blocks", damage->blocks, "extent_block", damage->extent_block,
                         "object_id", (unsigned long long)damage->object_id,
                         "count", (unsigned long long)damage->count,
                         "sequence", (unsigned long long)damage->sequence,
                         "first_ns", (unsigned long long)damage->first_ns,
                         "last_ns", (unsigned long long)damage->last_ns,
                         "key", (const char *)damage->key, (Py_ssize_t)damage->key_length,
                         "end", (const char *)damage->end, (Py_ssize_t)damage->end_length);
}

static PyObject *damage_list(const struct store_damage *items, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);

    for (size_t index = 0; list != NULL && index < count; index++) {
        PyObject *entry = damage_object(&items[index]);

        if (entry == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)index, entry);
        }
    }
    return list;
}

STORE_METHOD(binding_damages)
{
    static char *names[] = {"after", NULL};
    struct store_damage *items;
    PyObject *list = NULL;
    uint64_t after = 0;
    uint64_t total = 0;
    size_t count;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|O&:damages", names, binding_convert_u64, &after)) {
        return NULL;
    }
    items = calloc(STORE_DAMAGES_MAX, sizeof *items);
    if (items == NULL) {
        return PyErr_NoMemory();
    }
    if (!gate_enter(&self->gate, "Store")) {
        free(items);
        return NULL;
    }
    count = store_damages(self->store, after, items, &total);
    gate_leave(&self->gate);
    list = damage_list(items, count);
    free(items);
    return list == NULL ? NULL : Py_BuildValue("(NK)", list, (unsigned long long)total);
}

struct damage_collector {
    struct store_damage *items;
    size_t count;
    size_t capacity;
};

static void collect(void *argument, const struct store_damage *damage)
{
    struct damage_collector *collector = argument;

    if (collector->count == collector->capacity) {
        size_t capacity = collector->capacity == 0 ? 16 : 2 * collector->capacity;
        struct store_damage *grown = NULL;

        if (collector->count < DAMAGES_PER_STEP_MAX) {
            grown = realloc(collector->items, capacity * sizeof *grown);
        }
        if (grown == NULL) {
            return; /* counted in the result all the same */
        }
        collector->items = grown;
        collector->capacity = capacity;
    }
    collector->items[collector->count++] = *damage;
}

STORE_METHOD(binding_scrub)
{
    static char *names[] = {"position", "bytes_max", NULL};
    struct scrub_position position;
    struct scrub_result result = {0};
    struct damage_collector collector = {0};
    PyObject *list;
    PyObject *next;
    const char *bytes = "";
    Py_ssize_t length = 0;
    uint64_t bytes_max = 1 << 20;
    int status;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "|y#O&:scrub", names, &bytes, &length, binding_convert_u64,
                                     &bytes_max)) {
        return NULL;
    }
    if (!position_decode((const uint8_t *)bytes, length, &position)) {
        PyErr_SetString(PyExc_ValueError, "this is no position of a scrub");
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = store_scrub(self->store, &position, bytes_max, &result, collect, &collector);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    list = status == 0 ? damage_list(collector.items, collector.count) : NULL;
    free(collector.items);
    if (status != 0) {
        return binding_raise(status);
    }
    next = list == NULL ? NULL : position_encode(&position);
    if (next == NULL) {
        Py_XDECREF(list);
        return NULL;
    }
    return Py_BuildValue("(N{s:O,s:K,s:K,s:K,s:K,s:K}N)", next, "finished", result.finished ? Py_True : Py_False,
                         "bytes", (unsigned long long)result.bytes, "nodes", (unsigned long long)result.nodes,
                         "data_blocks", (unsigned long long)result.data_blocks,
                         "damaged", (unsigned long long)result.damaged,
                         "repaired", (unsigned long long)result.repaired, list);
}
