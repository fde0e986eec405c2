/* The module `cowfs._native`: the type FileSystem, its life and views. */
#include "binding.h"
#include "binding_pump.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define STORE_CAPSULE_NAME "btree.store"
#define NANOSECONDS_PER_SECOND 1000000000
#define ATTRIBUTE_COUNT 13

/* ---- errors and converters ----------------------------------------------------------------------------------- */

PyObject *binding_raise(int status)
{
    errno = -status;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *binding_none(int status)
{
    if (status != 0)
        return binding_raise(status);
    Py_RETURN_NONE;
}

int binding_convert_u64(PyObject *object, void *out)
{
    PyObject *number = PyNumber_Index(object);
    if (number == NULL)
        return 0;
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    if (value == (unsigned long long)-1 && PyErr_Occurred() != NULL)
        return 0;
    *(uint64_t *)out = value;
    return 1;
}

int binding_convert_u32(PyObject *object, void *out)
{
    uint64_t value;
    if (!binding_convert_u64(object, &value))
        return 0;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the number does not fit 32 bits");
        return 0;
    }
    *(uint32_t *)out = (uint32_t)value;
    return 1;
}

struct filesystem_name binding_name(const struct bytes_argument *argument)
{
    return (struct filesystem_name){argument->bytes, (size_t)argument->length};
}

struct filesystem_time binding_time(int64_t nanoseconds)
{
    int64_t seconds = nanoseconds / NANOSECONDS_PER_SECOND, rest = nanoseconds % NANOSECONDS_PER_SECOND;
    if (rest < 0) {
        seconds--;
        rest += NANOSECONDS_PER_SECOND;
    }
    return (struct filesystem_time){seconds, (uint32_t)rest};
}

/* A time that a store of another origin holds may be out of range: the nearest that fits. */
static int64_t time_nanoseconds(struct filesystem_time time)
{
    int64_t nanoseconds;
    if (__builtin_mul_overflow(time.seconds, (int64_t)NANOSECONDS_PER_SECOND, &nanoseconds) ||
        __builtin_add_overflow(nanoseconds, (int64_t)time.nanoseconds, &nanoseconds))
        return time.seconds < 0 ? INT64_MIN : INT64_MAX;
    return nanoseconds;
}

PyObject *binding_attributes(const struct filesystem_attributes *attributes)
{
    const uint64_t numbers[] = {attributes->node, attributes->mode, attributes->nlink,      attributes->uid,
                                attributes->gid,  attributes->rdev, attributes->size_bytes, attributes->blocks_512};
    const struct filesystem_time times[] = {attributes->atime, attributes->mtime, attributes->ctime, attributes->birth};
    enum { NUMBERS = sizeof numbers / sizeof *numbers, TIMES = sizeof times / sizeof *times };
    _Static_assert(NUMBERS + TIMES + 1 == ATTRIBUTE_COUNT, "one item for each");
    PyObject *result = PyTuple_New(ATTRIBUTE_COUNT);
    for (Py_ssize_t at = 0; result != NULL && at < ATTRIBUTE_COUNT; at++) {
        PyObject *item = at < NUMBERS           ? PyLong_FromUnsignedLongLong(numbers[at])
                         : at < NUMBERS + TIMES ? PyLong_FromLongLong(time_nanoseconds(times[at - NUMBERS]))
                                                : PyLong_FromUnsignedLong(attributes->flags);
        if (item == NULL)
            Py_CLEAR(result);
        else
            PyTuple_SET_ITEM(result, at, item);
    }
    return result;
}

PyObject *binding_result(int status, const struct filesystem_attributes *attributes)
{
    return status != 0 ? binding_raise(status) : binding_attributes(attributes);
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

/* The struct behind a Store that is open, or NULL with an exception. */
static struct store *store_of(PyObject *capsule_method)
{
    PyObject *capsule = PyObject_CallNoArgs(capsule_method);
    if (capsule == NULL)
        return NULL;
    struct store *store = PyCapsule_GetPointer(capsule, STORE_CAPSULE_NAME);
    Py_DECREF(capsule);
    return store;
}

bool binding_enter(struct file_system_object *self)
{
    return store_of(self->capsule_method) != NULL;
}

static PyObject *file_system_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"store", "volume_id", "read_only", NULL};
    PyObject *store;
    uint64_t volume_id;
    int read_only = 0, status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO&|$p:FileSystem", names, &store, binding_convert_u64,
                                     &volume_id, &read_only))
        return NULL;
    struct file_system_object *self = (struct file_system_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->capsule_method = PyObject_GetAttrString(store, "_capsule");
    if (self->capsule_method == NULL || (self->store = store_of(self->capsule_method)) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS status = filesystem_open(self->store, volume_id, read_only != 0, &self->filesystem);
    Py_END_ALLOW_THREADS if (status != 0)
    {
        Py_DECREF(self);
        return binding_raise(status);
    }
    return (PyObject *)self;
}

static void file_system_dealloc(struct file_system_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->filesystem != NULL)
        filesystem_close(self->filesystem);
    Py_XDECREF(self->capsule_method);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *file_system_initialize(PyObject *Py_UNUSED(type), PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"store", "volume_id", "uid", "gid", "mode", NULL};
    PyObject *store_object;
    PyObject *uid_object = NULL, *gid_object = NULL;
    uint64_t volume_id;
    uint32_t uid, gid, mode = 0755;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO&|$OOO&:initialize", names, &store_object,
                                     binding_convert_u64, &volume_id, &uid_object, &gid_object, binding_convert_u32,
                                     &mode))
        return NULL;
    if (uid_object == NULL || gid_object == NULL) {
        PyErr_SetString(PyExc_TypeError, "initialize() needs uid and gid");
        return NULL;
    }
    if (!binding_convert_u32(uid_object, &uid) || !binding_convert_u32(gid_object, &gid))
        return NULL;
    PyObject *method = PyObject_GetAttrString(store_object, "_capsule");
    struct store *store = method == NULL ? NULL : store_of(method);
    Py_XDECREF(method);
    if (store == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_initialize(store, volume_id, uid, gid, mode);
    Py_END_ALLOW_THREADS return binding_none(status);
}

/* ---- views --------------------------------------------------------------------------------------------------- */

typedef int (*view_function)(struct filesystem *filesystem, uint64_t object_id, uint64_t *root_node);

static PyObject *view_root(struct file_system_object *self, PyObject *arguments, PyObject *keywords, char *name,
                           view_function function)
{
    char *names[] = {name, NULL};
    uint64_t object_id, root_node = 0;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&", names, binding_convert_u64, &object_id) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = function(self->filesystem, object_id, &root_node);
    Py_END_ALLOW_THREADS return status != 0 ? binding_raise(status) : PyLong_FromUnsignedLongLong(root_node);
}

static FILE_SYSTEM_METHOD(file_system_view_of_snapshot)
{
    return view_root(self, arguments, keywords, "snapshot_id", filesystem_view_of_snapshot);
}

static FILE_SYSTEM_METHOD(file_system_view_of_volume)
{
    return view_root(self, arguments, keywords, "volume_id", filesystem_view_of_volume);
}

static FILE_SYSTEM_METHOD(file_system_forget_snapshot)
{
    static char *names[] = {"snapshot_id", NULL};
    uint64_t snapshot_id;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:forget_snapshot", names, binding_convert_u64,
                                     &snapshot_id))
        return NULL;
    Py_BEGIN_ALLOW_THREADS filesystem_forget_snapshot(self->filesystem, snapshot_id);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

/* Frees the ids. */
static PyObject *nodes_to_list(struct filesystem_nodes *nodes)
{
    PyObject *list = PyList_New((Py_ssize_t)nodes->count);
    for (size_t at = 0; list != NULL && at < nodes->count; at++) {
        PyObject *node = PyLong_FromUnsignedLongLong(nodes->ids[at]);
        if (node == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)at, node);
    }
    free(nodes->ids);
    return list;
}

static FILE_SYSTEM_METHOD(file_system_rolled_back)
{
    static char *names[] = {"volume_id", NULL};
    struct filesystem_nodes open = {0};
    uint64_t volume_id;
    uint32_t old_view;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:rolled_back", names, binding_convert_u64, &volume_id) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = filesystem_rolled_back(self->filesystem, volume_id, &open, &old_view);
    Py_END_ALLOW_THREADS if (status != 0) return binding_raise(status);
    PyObject *list = nodes_to_list(&open);
    return list == NULL ? NULL : Py_BuildValue("NI", list, (unsigned int)old_view);
}

static FILE_SYSTEM_METHOD(file_system_held_nodes)
{
    static char *names[] = {"view", "cursor", NULL};
    struct filesystem_nodes nodes = {0};
    uint64_t view, cursor;
    int status;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:held_nodes", names, binding_convert_u64, &view,
                                     binding_convert_u64, &cursor) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        filesystem_held_nodes(self->filesystem, view > UINT32_MAX ? UINT32_MAX : (uint32_t)view, &cursor, &nodes);
    Py_END_ALLOW_THREADS if (status != 0)
    {
        free(nodes.ids);
        return binding_raise(status);
    }
    PyObject *list = nodes_to_list(&nodes);
    return list == NULL ? NULL : Py_BuildValue("NK", list, (unsigned long long)cursor);
}

static PyObject *node_question(struct file_system_object *self, PyObject *arguments, PyObject *keywords,
                               bool (*function)(struct filesystem *filesystem, uint64_t node))
{
    static char *names[] = {"node_id", NULL};
    uint64_t node;
    bool answer;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&", names, binding_convert_u64, &node))
        return NULL;
    Py_BEGIN_ALLOW_THREADS answer = function(self->filesystem, node);
    Py_END_ALLOW_THREADS return PyBool_FromLong(answer);
}

static FILE_SYSTEM_METHOD(file_system_is_read_only_node)
{
    return node_question(self, arguments, keywords, filesystem_is_read_only_node);
}

static FILE_SYSTEM_METHOD(file_system_is_stale)
{
    return node_question(self, arguments, keywords, filesystem_is_stale);
}

static FILE_SYSTEM_METHOD(file_system_opened)
{
    static char *names[] = {"node_id", NULL};
    uint64_t node;
    uint64_t handle;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:opened", names, binding_convert_u64, &node))
        return NULL;
    int status = node == 0 ? -EINVAL : filesystem_opened(self->filesystem, node, &handle);
    return status != 0 ? binding_raise(status) : PyLong_FromUnsignedLongLong(handle);
}

static FILE_SYSTEM_METHOD(file_system_closed)
{
    static char *names[] = {"node_id", "handle", NULL};
    uint64_t node, handle;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&O&:closed", names, binding_convert_u64, &node,
                                     binding_convert_u64, &handle))
        return NULL;
    filesystem_closed(self->filesystem, node, handle);
    Py_RETURN_NONE;
}

static FILE_SYSTEM_METHOD(file_system_open_nodes)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":open_nodes", names))
        return NULL;
    return PyLong_FromSize_t(filesystem_open_nodes(self->filesystem));
}

static FILE_SYSTEM_METHOD(file_system_is_settling)
{
    return node_question(self, arguments, keywords, filesystem_is_settling);
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static FILE_SYSTEM_METHOD(file_system_statfs)
{
    static char *names[] = {NULL};
    struct filesystem_space space;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":statfs", names) || !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS filesystem_statfs(self->filesystem, &space);
    Py_END_ALLOW_THREADS return Py_BuildValue("(IKKKI)", STORE_BLOCK_SIZE, (unsigned long long)space.blocks,
                                              (unsigned long long)space.blocks_free,
                                              (unsigned long long)space.blocks_available, FILESYSTEM_NAME_LENGTH_MAX);
}

/* Messages that came without the GIL, NUL-terminated one after the other. */
struct messages {
    char *bytes;
    size_t length;
    bool failed;
};

static void message_add(void *argument, const char *message)
{
    struct messages *messages = argument;
    size_t length = strlen(message) + 1;
    char *grown = realloc(messages->bytes, messages->length + length);
    if (grown == NULL) {
        messages->failed = true;
        return;
    }
    memcpy(grown + messages->length, message, length);
    messages->bytes = grown;
    messages->length += length;
}

static FILE_SYSTEM_METHOD(file_system_set_compression)
{
    static char *names[] = {"volume_id", "algorithm", "level", NULL};
    uint64_t volume_id;
    unsigned algorithm, level;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&II:set_compression", names, binding_convert_u64,
                                     &volume_id, &algorithm, &level) ||
        !binding_enter(self))
        return NULL;
    return binding_none(filesystem_set_compression(self->filesystem, volume_id, algorithm, level));
}

static FILE_SYSTEM_METHOD(file_system_compression)
{
    static char *names[] = {NULL};
    uint64_t content_blocks, stored_blocks;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":compression", names) || !binding_enter(self))
        return NULL;
    filesystem_compression(self->filesystem, &content_blocks, &stored_blocks);
    return Py_BuildValue("(KK)", (unsigned long long)content_blocks * STORE_BLOCK_SIZE,
                         (unsigned long long)stored_blocks * STORE_BLOCK_SIZE);
}

static FILE_SYSTEM_METHOD(file_system_gather_start)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":gather_start", names) || !binding_enter(self))
        return NULL;
    return binding_none(filesystem_gather_start(self->filesystem));
}

static FILE_SYSTEM_METHOD(file_system_gather)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":gather", names) || !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS filesystem_gather(self->filesystem);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static FILE_SYSTEM_METHOD(file_system_check)
{
    static char *names[] = {"object_id", NULL};
    struct messages messages = {0};
    uint64_t object_id;
    int64_t problems;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:check", names, binding_convert_u64, &object_id) ||
        !binding_enter(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS problems = filesystem_check(self->filesystem, object_id, message_add, &messages);
    Py_END_ALLOW_THREADS PyObject *list = NULL;
    if (problems < 0)
        binding_raise((int)problems);
    else if (messages.failed)
        PyErr_NoMemory();
    else
        list = PyList_New(0);
    for (size_t at = 0; list != NULL && at < messages.length; at += strlen(messages.bytes + at) + 1) {
        PyObject *message = PyUnicode_FromString(messages.bytes + at);
        if (message == NULL || PyList_Append(list, message) != 0)
            Py_CLEAR(list);
        Py_XDECREF(message);
    }
    free(messages.bytes);
    return list;
}

/* ---- type ---------------------------------------------------------------------------------------------------- */

#define METHOD(name, function, signature)                                                                              \
    {                                                                                                                  \
        name, (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS, name signature                    \
    }

static PyMethodDef file_system_methods[] = {
    {"initialize", (PyCFunction)(void (*)(void))file_system_initialize, METH_VARARGS | METH_KEYWORDS | METH_STATIC,
     "initialize(store, volume_id, *, uid, gid, mode=0o755)\n--\n\nWrites the root directory of a new volume."},
    METHOD("view_of_snapshot", file_system_view_of_snapshot,
           "($self, /, snapshot_id)\n--\n\nNode id of the root of a snapshot's tree."),
    METHOD("view_of_volume", file_system_view_of_volume,
           "($self, /, volume_id)\n--\n\nNode id of the root of another volume's tree."),
    METHOD("forget_snapshot", file_system_forget_snapshot,
           "($self, /, snapshot_id)\n--\n\nThe snapshot is deleted: its node ids answer ESTALE from now on."),
    METHOD("rolled_back", file_system_rolled_back,
           "($self, /, volume_id)\n--\n\nStarts a new view; returns the node ids of the old one that are open, and its "
           "number."),
    METHOD("held_nodes", file_system_held_nodes,
           "($self, /, view, cursor)\n--\n\nOne step through the nodes of a view that are held; and the next cursor, "
           "0 at the end."),
    METHOD("is_read_only_node", file_system_is_read_only_node,
           "($self, /, node_id)\n--\n\nWhether changes to the node answer an error."),
    METHOD("is_stale", file_system_is_stale, "($self, /, node_id)\n--\n\nWhether the node's tree is gone."),
    METHOD("is_settling", file_system_is_settling,
           "($self, /, node_id)\n--\n\nWhether what it takes may change by itself: it is being compressed."),
    METHOD("opened", file_system_opened, "($self, /, node_id)\n--\n\nOf a file or directory, by a front end."),
    METHOD("closed", file_system_closed, "($self, /, node_id)\n--\n\nTakes back one opened()."),
    METHOD("open_nodes", file_system_open_nodes, "($self, /)\n--\n\nHow many nodes are open."),
    METHOD("lookup", binding_lookup, "($self, /, parent, name)\n--\n\nRaises the lookup count by one."),
    METHOD("create", binding_create,
           "($self, /, parent, name, mode, uid, gid, rdev=0, target=None)\n--\n\nAn inode and its name."),
    METHOD("create_unnamed", binding_create_unnamed,
           "($self, /, parent, mode, uid, gid)\n--\n\nA file without a name, which link may give it."),
    METHOD("link", binding_link, "($self, /, node, new_parent, new_name)\n--\n\nA further name."),
    METHOD("unlink", binding_unlink, "($self, /, parent, name)\n--\n\nTakes a name of anything but a directory."),
    METHOD("rmdir", binding_rmdir, "($self, /, parent, name)\n--\n\nTakes the name of an empty directory."),
    METHOD("rename", binding_rename,
           "($self, /, old_parent, old_name, new_parent, new_name, flags)\n--\n\nflags: 1 NOREPLACE, 2 EXCHANGE."),
    METHOD("readlink", binding_readlink, "($self, /, node)\n--\n\nThe target of a symlink."),
    METHOD("readdir", binding_readdir,
           "($self, /, node, cookie, limit, lookup)\n--\n\nEntries after a cookie: (name, cookie, attributes)."),
    METHOD("parent", binding_parent, "($self, /, node)\n--\n\nNode id of a directory's parent."),
    METHOD("path", binding_path, "($self, /, node)\n--\n\nOne path from the root of the tree, beginning with a slash."),
    METHOD("getattr", binding_getattr, "($self, /, node)\n--\n\nAttributes."),
    METHOD("setattr", binding_setattr,
           "($self, /, node, *, mode=-1, uid=-1, gid=-1, size=-1, atime_ns=None, mtime_ns=None, ctime_ns=None)"
           "\n--\n\n-1 and None leave a field alone."),
    METHOD("setflags", binding_setflags, "($self, /, node, flags)\n--\n\n1 immutable, 2 append-only."),
    METHOD("may_open", binding_may_open,
           "($self, /, node, flags)\n--\n\n1 to write, 2 with O_APPEND, 4 with O_TRUNC: EPERM when forbidden."),
    METHOD("forget", binding_forget, "($self, /, node, count)\n--\n\nLowers the lookup count."),
    METHOD("lookup_count", binding_lookup_count, "($self, /, node)\n--\n\nThe lookup count."),
    METHOD("release_all", binding_release_all,
           "($self, /)\n--\n\nRemoves what is unlinked but open, forgets every lookup count."),
    METHOD("read", binding_read, "($self, /, node, offset, length)\n--\n\nFewer bytes at the end of the file."),
    METHOD("write", binding_write, "($self, /, node, offset, data, append=False)\n--\n\nReturns the length of data."),
    METHOD("seek", binding_seek, "($self, /, node, offset, hole)\n--\n\nSEEK_DATA, or SEEK_HOLE; ENXIO."),
    METHOD("allocate", binding_allocate, "($self, /, node, mode, offset, length)\n--\n\nfallocate(2)."),
    METHOD("copy_range", binding_copy_range,
           "($self, /, node_in, offset_in, node_out, offset_out, length)\n--\n\ncopy_file_range(2): bytes copied."),
    METHOD("fsync", binding_fsync, "($self, /, node)\n--\n\nDurable when it returns."),
    METHOD("getxattr", binding_getxattr, "($self, /, node, name)\n--\n\nThe value; ENODATA."),
    METHOD("setxattr", binding_setxattr, "($self, /, node, name, value, flags=0)\n--\n\n1 CREATE, 2 REPLACE."),
    METHOD("removexattr", binding_removexattr, "($self, /, node, name)\n--\n\nENODATA."),
    METHOD("listxattr", binding_listxattr, "($self, /, node)\n--\n\nNames."),
    METHOD("statfs", file_system_statfs,
           "($self, /)\n--\n\n(block_size, blocks, blocks_free, blocks_available, name_length_max)."),
    METHOD("diff", binding_diff,
           "($self, /, old_object_id, new_object_id, *, first_inode=0, last_inode=..., limit=1000)"
           "\n--\n\nWhat differs between two trees, by inode."),
    METHOD("trace", binding_trace, "($self, /, object_id, path)\n--\n\nWhere a path leads, and since which epoch."),
    METHOD("object_path", binding_object_path, "($self, /, object_id, inode)\n--\n\nA path of an inode in a tree."),
    METHOD("set_compression", file_system_set_compression,
           "($self, /, volume_id, algorithm, level)\n--\n\nOf what is written; volume id 0: where no other is set."),
    METHOD("compression", file_system_compression,
           "($self, /)\n--\n\nBytes stored compressed so far, and what they took."),
    METHOD("gather_start", file_system_gather_start,
           "($self, /)\n--\n\nCompresses what came in small writes, from now on and beside everything else."),
    METHOD("gather", file_system_gather, "($self, /)\n--\n\nCompresses now what waits for that."),
    METHOD("check", file_system_check, "($self, /, object_id)\n--\n\nProblems in one tree."),
    {0},
};

static PyType_Slot file_system_slots[] = {
    {Py_tp_doc, "FileSystem(store, volume_id, *, read_only=False)\n--\n\nOne mounted volume and whatever other trees "
                "are looked at through it."},
    {Py_tp_new, file_system_new},
    {Py_tp_dealloc, file_system_dealloc},
    {Py_tp_methods, file_system_methods},
    {0, NULL},
};

static PyType_Spec file_system_spec = {
    .name = "cowfs._native.FileSystem",
    .basicsize = sizeof(struct file_system_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = file_system_slots,
};

/* Attributes = tuple[int, ...] of as many as binding_attributes() makes. */
static int add_attributes_alias(PyObject *module)
{
    PyObject *types = PyTuple_New(ATTRIBUTE_COUNT);
    for (Py_ssize_t at = 0; types != NULL && at < ATTRIBUTE_COUNT; at++)
        PyTuple_SET_ITEM(types, at, Py_NewRef((PyObject *)&PyLong_Type));
    PyObject *alias = types == NULL ? NULL : Py_GenericAlias((PyObject *)&PyTuple_Type, types);
    int status = alias == NULL ? -1 : PyModule_AddObjectRef(module, "Attributes", alias);
    Py_XDECREF(types);
    Py_XDECREF(alias);
    return status;
}

/* The checks of its type and its store are one: only a FileSystem has a destructor of this module. */
struct file_system_object *binding_file_system(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc != (destructor)file_system_dealloc) {
        PyErr_SetString(PyExc_TypeError, "a FileSystem is wanted");
        return NULL;
    }
    struct file_system_object *self = (struct file_system_object *)object;
    return binding_enter(self) ? self : NULL;
}

static int module_execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &file_system_spec, NULL);
    if (type == NULL)
        return -1;
    int status = PyModule_AddObjectRef(module, "FileSystem", type);
    Py_DECREF(type);
    if (status == 0)
        status = add_attributes_alias(module);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "VIEW_SHIFT", FILESYSTEM_VIEW_SHIFT);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "ROOT_INODE", FILESYSTEM_ROOT_INODE);
    if (status == 0)
        status = PyModule_AddIntConstant(module, "INLINE_LENGTH_MAX", FILESYSTEM_INLINE_LENGTH_MAX);
    if (status == 0)
        status = binding_pump_add(module);
    return status;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_execute},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "cowfs._native",
    .m_doc = "The file system's verbs in C, over a btree store.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_definition);
}
