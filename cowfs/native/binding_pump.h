/* Between binding.c, which owns the module, and binding_pump.c. */
#ifndef COWFS_BINDING_PUMP_H
#define COWFS_BINDING_PUMP_H

#include "binding.h"
#include "pump.h"

/* Adds the type Pump and its constants to the module; -1 with an exception. */
int binding_pump_add(PyObject *module);
/* The struct behind a FileSystem whose store is open, or NULL with an exception. */
struct file_system_object *binding_file_system(PyObject *object);

#endif
