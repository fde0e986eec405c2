/* Shared parts of the Python extension `cowfs._native`. The GIL is released around every verb. */
#ifndef COWFS_BINDING_H
#define COWFS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "filesystem.h"

struct file_system_object {
    PyObject_HEAD struct filesystem *filesystem; /* NULL until it is open */
    struct store *store;
    PyObject *capsule_method; /* of the Store, which it keeps alive */
};

/* Bytes of one verb's argument; alive as long as the arguments of the call. */
struct bytes_argument {
    const char *bytes;
    Py_ssize_t length;
};

/* ---- binding.c ----------------------------------------------------------------------------------------------- */

/* Sets OSError from a negative errno; returns NULL. */
PyObject *binding_raise(int status);
/* None when status is 0. */
PyObject *binding_none(int status);
/* Converters for "O&"; OverflowError out of range. */
int binding_convert_u64(PyObject *object, void *out);
int binding_convert_u32(PyObject *object, void *out);
/* False, with ValueError, when the store has been closed. */
bool binding_enter(struct file_system_object *self);
struct filesystem_name binding_name(const struct bytes_argument *argument);
/* Nanoseconds since 1970, which an int64 of them bounds to the years 1677 to 2262. */
struct filesystem_time binding_time(int64_t nanoseconds);
PyObject *binding_attributes(const struct filesystem_attributes *attributes);
/* Attributes, or OSError. */
PyObject *binding_result(int status, const struct filesystem_attributes *attributes);

#define FILE_SYSTEM_METHOD(name)                                                                                       \
    PyObject *name(struct file_system_object *self, PyObject *arguments, PyObject *keywords)

/* ---- binding_names.c ----------------------------------------------------------------------------------------- */
FILE_SYSTEM_METHOD(binding_lookup);
FILE_SYSTEM_METHOD(binding_create);
FILE_SYSTEM_METHOD(binding_create_unnamed);
FILE_SYSTEM_METHOD(binding_link);
FILE_SYSTEM_METHOD(binding_unlink);
FILE_SYSTEM_METHOD(binding_rmdir);
FILE_SYSTEM_METHOD(binding_rename);
FILE_SYSTEM_METHOD(binding_readlink);
FILE_SYSTEM_METHOD(binding_readdir);
FILE_SYSTEM_METHOD(binding_parent);
FILE_SYSTEM_METHOD(binding_path);

/* ---- binding_inodes.c ---------------------------------------------------------------------------------------- */
FILE_SYSTEM_METHOD(binding_getattr);
FILE_SYSTEM_METHOD(binding_setattr);
FILE_SYSTEM_METHOD(binding_setflags);
FILE_SYSTEM_METHOD(binding_may_open);
FILE_SYSTEM_METHOD(binding_forget);
FILE_SYSTEM_METHOD(binding_lookup_count);
FILE_SYSTEM_METHOD(binding_release_all);
FILE_SYSTEM_METHOD(binding_read);
FILE_SYSTEM_METHOD(binding_write);
FILE_SYSTEM_METHOD(binding_fsync);
FILE_SYSTEM_METHOD(binding_getxattr);
FILE_SYSTEM_METHOD(binding_setxattr);
FILE_SYSTEM_METHOD(binding_removexattr);
FILE_SYSTEM_METHOD(binding_listxattr);

/* ---- binding_ranges.c ---------------------------------------------------------------------------------------- */
FILE_SYSTEM_METHOD(binding_seek);
FILE_SYSTEM_METHOD(binding_allocate);
FILE_SYSTEM_METHOD(binding_copy_range);

/* ---- binding_history.c --------------------------------------------------------------------------------------- */
FILE_SYSTEM_METHOD(binding_diff);
FILE_SYSTEM_METHOD(binding_trace);
FILE_SYSTEM_METHOD(binding_object_path);

#endif
