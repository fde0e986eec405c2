/* Store's methods on items: get, put, delete, scan, diff. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bound the time that a scan or diff holds the store's lock, and the bulk load's transactions. */
#define PAGE_ITEMS 256u
#define PAGE_BYTES (32u << 10)

static bool page_is_full(const struct record_list *list, size_t first, size_t first_bytes, size_t items_max)
{
    return list->count - first >= items_max || list->bytes_used - first_bytes >= PAGE_BYTES;
}

/* ---- get ----------------------------------------------------------------------------------------------------- */

struct get_request {
    const char *key;
    Py_ssize_t key_length;
    struct record_list found; /* one record with the value in part 0, or none */
};

static int get_body(struct transaction *transaction, void *argument)
{
    struct get_request *request = argument;
    struct store_item item;
    int result;

    records_truncate(&request->found, 0);
    result = transaction_get(transaction, request->key, (size_t)request->key_length, &item);
    if (result == 0) {
        const struct record_part parts[RECORD_PARTS] = {{item.value, item.value_length}};

        result = records_append(&request->found, parts);
    }
    return result == -ENOENT ? 0 : result; /* -ENOENT out of store_transact() means the object */
}

STORE_METHOD(binding_get)
{
    static char *names[] = {"object_id", "key", NULL};
    struct get_request request = {0};
    PyObject *value = NULL;
    uint64_t object_id = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:get", names, binding_convert_u64, &object_id,
                                     &request.key, &request.key_length)) {
        return NULL;
    }
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = store_transact(self->store, object_id, STORE_TRANSACT_READ, get_body, &request);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
    } else if (request.found.count == 0) {
        value = Py_NewRef(Py_None);
    } else {
        value = record_object(&request.found, 0, 0);
    }
    records_free(&request.found);
    return value;
}

/* ---- changes ------------------------------------------------------------------------------------------------- */

int binding_kill_extent(struct transaction *transaction, const void *key, size_t key_length)
{
    struct store_extent extent;
    struct store_item item;
    int result = transaction_get(transaction, key, key_length, &item);

    if (result == -ENOENT || (result == 0 && item.kind != STORE_VALUE_EXTENT)) {
        return 0;
    }
    if (result == 0) {
        result = store_extent_decode(item.value, item.value_length, &extent);
    }
    if (result == 0) {
        result = transaction_kill(transaction, extent.address, extent.blocks, extent.birth);
    }
    return result;
}

/* The argument is a list of (key, value or absent, present when the blocks of a replaced extent are kept). */
static int changes_body(struct transaction *transaction, void *argument)
{
    const struct record_list *changes = argument;
    int result = 0;

    for (size_t index = 0; result == 0 && index < changes->count; index++) {
        const struct record *record = &changes->records[index];
        const uint8_t *key = record_part(changes, index, 0);

        if (record->lengths[2] == RECORD_ABSENT) {
            result = binding_kill_extent(transaction, key, record->lengths[0]);
        }
        if (result != 0) {
            break;
        }
        if (record->lengths[1] == RECORD_ABSENT) {
            result = transaction_delete(transaction, key, record->lengths[0]);
        } else {
            result = transaction_put(transaction, key, record->lengths[0], record_part(changes, index, 1),
                                     record->lengths[1], STORE_VALUE_PLAIN, false);
        }
    }
    return result;
}

static int changes_transact(struct store *store, uint64_t volume_id, struct record_list *changes)
{
    unsigned flags = STORE_TRANSACT_RESERVE;

    for (size_t index = 0; index < changes->count; index++) {
        if (changes->records[index].lengths[1] != RECORD_ABSENT) {
            flags = 0;
        }
    }
    return store_transact(store, volume_id, flags, changes_body, changes);
}

/* Applies the changes as one transaction. Needs the GIL. 0, or -1 with an exception set. */
static int changes_run(struct store_object *self, uint64_t volume_id, struct record_list *changes)
{
    int result = 0;

    if (!gate_enter(&self->gate, "Store")) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    result = changes_transact(self->store, volume_id, changes);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
        return -1;
    }
    return 0;
}

static PyObject *change_one(struct store_object *self, uint64_t volume_id, const char *key, Py_ssize_t key_length,
                            const char *value, Py_ssize_t value_length)
{
    const struct record_part parts[RECORD_PARTS] = {{key, (size_t)key_length}, {value, (size_t)value_length}};
    struct record_list changes = {0};
    int result = records_append(&changes, parts);

    if (result != 0) {
        binding_raise(result);
    } else {
        result = changes_run(self, volume_id, &changes);
    }
    records_free(&changes);
    return result == 0 ? Py_NewRef(Py_None) : NULL;
}

STORE_METHOD(binding_put)
{
    static char *names[] = {"volume_id", "key", "value", NULL};
    const char *key = NULL;
    const char *value = NULL;
    Py_ssize_t key_length = 0;
    Py_ssize_t value_length = 0;
    uint64_t volume_id = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#y#:put", names, binding_convert_u64, &volume_id, &key,
                                     &key_length, &value, &value_length)) {
        return NULL;
    }
    return change_one(self, volume_id, key, key_length, value, value_length);
}

STORE_METHOD(binding_delete)
{
    static char *names[] = {"volume_id", "key", NULL};
    const char *key = NULL;
    Py_ssize_t key_length = 0;
    uint64_t volume_id = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&y#:delete", names, binding_convert_u64, &volume_id, &key,
                                     &key_length)) {
        return NULL;
    }
    return change_one(self, volume_id, key, key_length, NULL, 0);
}

/* Copies one (key, value) into the list. With `deletions` the value may be None. -1 with an exception set. */
static int change_append(struct record_list *changes, PyObject *pair, bool deletions)
{
    struct record_part parts[RECORD_PARTS] = {{NULL, 0}};
    PyObject *fast = PySequence_Fast(pair, "a change must be a (key, value) pair");
    PyObject *key;
    PyObject *value;
    int result = -1;

    if (fast == NULL) {
        return -1;
    }
    if (PySequence_Fast_GET_SIZE(fast) != 2) {
        PyErr_SetString(PyExc_TypeError, "a change must be a (key, value) pair");
        goto done;
    }
    key = PySequence_Fast_GET_ITEM(fast, 0);
    value = PySequence_Fast_GET_ITEM(fast, 1);
    if (!PyBytes_Check(key) || !(PyBytes_Check(value) || (deletions && value == Py_None))) {
        PyErr_SetString(PyExc_TypeError, "keys and values must be bytes");
        goto done;
    }
    parts[0].bytes = PyBytes_AS_STRING(key);
    parts[0].length = (size_t)PyBytes_GET_SIZE(key);
    if (value != Py_None) {
        parts[1].bytes = PyBytes_AS_STRING(value);
        parts[1].length = (size_t)PyBytes_GET_SIZE(value);
    }
    result = records_append(changes, parts);
    if (result != 0) {
        binding_raise(result);
        result = -1;
    }
done:
    Py_DECREF(fast);
    return result;
}

STORE_METHOD(binding_apply)
{
    static char *names[] = {"volume_id", "changes", "keep_blocks", NULL};
    struct record_list changes = {0};
    int keep_blocks = 0;
    PyObject *iterable = NULL;
    PyObject *iterator = NULL;
    PyObject *pair;
    uint64_t volume_id = 0;
    int result = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O|$p:apply", names, binding_convert_u64, &volume_id,
                                     &iterable, &keep_blocks)) {
        return NULL;
    }
    iterator = PyObject_GetIter(iterable);
    if (iterator == NULL) {
        return NULL;
    }
    while (result == 0 && (pair = PyIter_Next(iterator)) != NULL) {
        result = change_append(&changes, pair, true);
        Py_DECREF(pair);
    }
    Py_DECREF(iterator);
    if (PyErr_Occurred() != NULL) {
        result = -1;
    }
    for (size_t index = 0; keep_blocks && index < changes.count; index++) {
        changes.records[index].lengths[2] = 0;
    }
    if (result == 0) {
        result = changes_run(self, volume_id, &changes);
    }
    records_free(&changes);
    return result == 0 ? Py_NewRef(Py_None) : NULL;
}

STORE_METHOD(binding_bulk_load)
{
    static char *names[] = {"volume_id", "items", NULL};
    struct record_list changes = {0};
    PyObject *iterable = NULL;
    PyObject *iterator = NULL;
    PyObject *pair;
    unsigned long long count = 0;
    uint64_t volume_id = 0;
    int result = 0;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O:bulk_load", names, binding_convert_u64, &volume_id,
                                     &iterable)) {
        return NULL;
    }
    iterator = PyObject_GetIter(iterable);
    if (iterator == NULL) {
        return NULL;
    }
    while (result == 0 && (pair = PyIter_Next(iterator)) != NULL) {
        result = change_append(&changes, pair, false);
        Py_DECREF(pair);
        if (result == 0 && page_is_full(&changes, 0, 0, PAGE_ITEMS)) {
            result = changes_run(self, volume_id, &changes);
            count += changes.count;
            records_truncate(&changes, 0);
        }
    }
    Py_DECREF(iterator);
    if (PyErr_Occurred() != NULL) {
        result = -1;
    }
    if (result == 0) { /* also without items: that there is no such volume has to be said */
        result = changes_run(self, volume_id, &changes);
        count += changes.count;
    }
    records_free(&changes);
    return result == 0 ? PyLong_FromUnsignedLongLong(count) : NULL;
}

/* ---- scan ---------------------------------------------------------------------------------------------------- */

struct scan_request {
    const uint8_t *from; /* NULL, only in reverse: from the last item of all */
    size_t from_length;
    bool from_is_excluded;
    const uint8_t *bound; /* forward: first key not wanted; reverse: last key wanted; NULL: none */
    size_t bound_length;
    bool reverse;
    size_t items_max; /* of this page */
    size_t first;     /* records of earlier pages come before these */
    size_t first_bytes;
    struct record_list *list;
    bool more;
};

static int compare_keys(const void *left, size_t left_length, const void *right, size_t right_length)
{
    size_t common = left_length < right_length ? left_length : right_length;
    int order = common > 0 ? memcmp(left, right, common) : 0;

    return order != 0 ? order : (left_length > right_length) - (left_length < right_length);
}

static bool scan_is_past_bound(const struct scan_request *request, const struct store_item *item)
{
    int order;

    if (request->bound == NULL) {
        return false;
    }
    order = compare_keys(item->key, item->key_length, request->bound, request->bound_length);
    return request->reverse ? order < 0 : order >= 0;
}

static int scan_body(struct transaction *transaction, void *argument)
{
    struct scan_request *request = argument;
    struct cursor cursor;
    int result;

    records_truncate(request->list, request->first);
    request->more = false;
    if (request->reverse) {
        result = cursor_seek_last(transaction, &cursor, request->from, request->from_length);
    } else {
        result = cursor_seek(transaction, &cursor, request->from, request->from_length);
    }
    if (result == 0 && request->from_is_excluded
        && compare_keys(cursor.item.key, cursor.item.key_length, request->from, request->from_length) == 0) {
        result = request->reverse ? cursor_previous(transaction, &cursor) : cursor_next(transaction, &cursor);
    }
    while (result == 0 && !scan_is_past_bound(request, &cursor.item)) {
        const struct record_part parts[RECORD_PARTS] = {{cursor.item.key, cursor.item.key_length},
                                                        {cursor.item.value, cursor.item.value_length}};

        result = records_append(request->list, parts);
        if (result != 0) {
            break;
        }
        if (page_is_full(request->list, request->first, request->first_bytes, request->items_max)) {
            request->more = true;
            break;
        }
        result = request->reverse ? cursor_previous(transaction, &cursor) : cursor_next(transaction, &cursor);
    }
    return result == -ENOENT ? 0 : result;
}

/* All pages. The last key of a page, copied, is where the next one begins. */
static int scan_run(struct store *store, uint64_t object_id, struct scan_request *request, uint64_t limit)
{
    uint8_t last_key[STORE_KEY_LENGTH_MAX];
    int result;

    do {
        struct record_list *list = request->list;
        uint64_t left = limit > 0 ? limit - list->count : PAGE_ITEMS;

        request->items_max = left < PAGE_ITEMS ? (size_t)left : PAGE_ITEMS;
        request->first = list->count;
        request->first_bytes = list->bytes_used;
        result = store_transact(store, object_id, STORE_TRANSACT_READ, scan_body, request);
        if (result == 0 && request->more) {
            request->from_length = list->records[list->count - 1].lengths[0];
            memcpy(last_key, record_part(list, list->count - 1, 0), request->from_length);
            request->from = last_key;
            request->from_is_excluded = true;
        }
    } while (result == 0 && request->more && (limit == 0 || request->list->count < limit));
    return result;
}

STORE_METHOD(binding_scan)
{
    static char *names[] = {"object_id", "start", "stop", "reverse", "limit", NULL};
    struct record_list list = {0};
    struct scan_request request = {.list = &list};
    PyObject *items = NULL;
    const char *start = "";
    const char *stop = NULL;
    Py_ssize_t start_length = 0;
    Py_ssize_t stop_length = 0;
    uint64_t object_id = 0;
    uint64_t limit = 0;
    int reverse = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|y#z#$pO&:scan", names, binding_convert_u64, &object_id,
                                     &start, &start_length, &stop, &stop_length, &reverse, binding_convert_u64,
                                     &limit)) {
        return NULL;
    }
    if ((size_t)start_length > STORE_KEY_LENGTH_MAX || (size_t)stop_length > STORE_KEY_LENGTH_MAX) {
        return binding_raise(-EINVAL);
    }
    request.reverse = reverse != 0;
    request.from = (const uint8_t *)(reverse ? stop : start);
    request.from_length = (size_t)(reverse ? stop_length : start_length);
    request.from_is_excluded = reverse && stop != NULL;
    request.bound = (const uint8_t *)(reverse ? start : stop);
    request.bound_length = (size_t)(reverse ? start_length : stop_length);
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = scan_run(self->store, object_id, &request, limit);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
    } else {
        items = records_object(&list, 2);
    }
    records_free(&list);
    return items;
}

/* ---- diff ---------------------------------------------------------------------------------------------------- */

struct diff_request {
    const uint8_t *from;
    size_t from_length;
    bool from_is_excluded;
    size_t items_max;
    size_t first;
    size_t first_bytes;
    struct record_list list;
};

#define DIFF_PAGE_FULL 1

static int diff_callback(void *argument, const struct store_item *old_item, const struct store_item *new_item)
{
    struct diff_request *request = argument;
    const struct store_item *item = old_item != NULL ? old_item : new_item;
    const struct record_part parts[RECORD_PARTS] = {
        {item->key, item->key_length},
        {old_item != NULL ? old_item->value : NULL, old_item != NULL ? old_item->value_length : 0},
        {new_item != NULL ? new_item->value : NULL, new_item != NULL ? new_item->value_length : 0},
    };
    int result;

    if (request->from_is_excluded
        && compare_keys(item->key, item->key_length, request->from, request->from_length) == 0) {
        return 0;
    }
    result = records_append(&request->list, parts);
    if (result != 0) {
        return result;
    }
    return page_is_full(&request->list, request->first, request->first_bytes, request->items_max) ? DIFF_PAGE_FULL : 0;
}

static int diff_run(struct store *store, uint64_t old_object_id, uint64_t new_object_id, struct diff_request *request,
                    uint64_t limit)
{
    uint8_t last_key[STORE_KEY_LENGTH_MAX];
    struct record_list *list = &request->list;
    int result;

    do {
        uint64_t left = limit > 0 ? limit - list->count : PAGE_ITEMS;

        request->items_max = left < PAGE_ITEMS ? (size_t)left : PAGE_ITEMS;
        request->first = list->count;
        request->first_bytes = list->bytes_used;
        result = store_diff(store, old_object_id, new_object_id, request->from, request->from_length, diff_callback,
                            request);
        if (result == DIFF_PAGE_FULL) {
            request->from_length = list->records[list->count - 1].lengths[0];
            memcpy(last_key, record_part(list, list->count - 1, 0), request->from_length);
            request->from = last_key;
            request->from_is_excluded = true;
        }
    } while (result == DIFF_PAGE_FULL && (limit == 0 || list->count < limit));
    return result;
}

STORE_METHOD(binding_diff)
{
    static char *names[] = {"old_object_id", "new_object_id", "start", "limit", NULL};
    struct diff_request request = {0};
    PyObject *differences = NULL;
    const char *start = "";
    Py_ssize_t start_length = 0;
    uint64_t old_object_id = 0;
    uint64_t new_object_id = 0;
    uint64_t limit = 0;
    int result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&|$y#O&:diff", names, binding_convert_u64,
                                     &old_object_id, binding_convert_u64, &new_object_id, &start, &start_length,
                                     binding_convert_u64, &limit)) {
        return NULL;
    }
    if ((size_t)start_length > STORE_KEY_LENGTH_MAX) {
        return binding_raise(-EINVAL);
    }
    request.from = (const uint8_t *)start;
    request.from_length = (size_t)start_length;
    if (!gate_enter(&self->gate, "Store")) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = diff_run(self->store, old_object_id, new_object_id, &request, limit);
    Py_END_ALLOW_THREADS
    gate_leave(&self->gate);
    if (result < 0) {
        binding_raise(result);
    } else {
        differences = records_object(&request.list, RECORD_PARTS);
    }
    records_free(&request.list);
    return differences;
}
