/* Named properties of volumes: small values that belong to the volume and not to its content, so that a rollback keeps
 * them and a clone begins with a copy. In memory a list for each volume, ordered by name; on the medium one record of
 * the system tree each, under an id of its own. Layout of that record and of the journal's are owned here. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

enum property_record { PROPERTY_VOLUME = 0, PROPERTY_NAME_LENGTH = 8, PROPERTY_NAME = 10 };

/* The property of a name, or where it would be inserted. */
static struct property **property_slot(struct volume *volume, const char *name)
{
    struct property **at = &volume->properties;
    while (*at && strcmp((*at)->name, name) < 0)
        at = &(*at)->next;
    return at;
}

static struct property *property_find(struct volume *volume, const char *name)
{
    struct property *found = *property_slot(volume, name);
    return found && strcmp(found->name, name) == 0 ? found : NULL;
}

static void property_free(struct property *property)
{
    free(property->value);
    free(property->name);
    free(property);
}

/* In place of what has that name; NULL: out of memory, and nothing has changed. */
static struct property *property_attach(struct store *store, struct volume *volume, uint64_t id, const char *name,
                                        const void *value, size_t length)
{
    uint8_t *copy = malloc(length);
    if (!copy)
        return NULL;
    memcpy(copy, value, length);
    struct property **at = property_slot(volume, name);
    struct property *property = *at;
    if (!property || strcmp(property->name, name) != 0) {
        property = calloc(1, sizeof *property);
        char *name_copy = strdup(name);
        if (!property || !name_copy) {
            free(property);
            free(name_copy);
            free(copy);
            return NULL;
        }
        property->id = id;
        property->name = name_copy;
        property->next = *at;
        *at = property;
        volume->property_count++;
        if (id >= store->next_object_id)
            store->next_object_id = id + 1;
    }
    free(property->value);
    property->value = copy;
    property->length = (uint16_t)length;
    property->dirty = true;
    store->catalog_dirty = true;
    return property;
}

static void property_detach(struct store *store, struct volume *volume, struct property *property)
{
    *property_slot(volume, property->name) = property->next;
    volume->property_count--;
    if (property->saved)
        record_removed(store, SYSTEM_PROPERTY, property->id);
    property_free(property);
    store->catalog_dirty = true;
}

int apply_property(struct store *store, uint64_t volume_id, uint64_t id, const char *name, const void *value,
                   size_t length)
{
    struct volume *volume = volume_by_id(store, volume_id);
    if (!volume)
        return -ENOENT;
    struct property *property = property_find(volume, name);
    if (length == 0) {
        if (property)
            property_detach(store, volume, property);
        return 0;
    }
    if (!property && volume->property_count >= STORE_PROPERTIES_MAX)
        return -E2BIG;
    return property_attach(store, volume, id, name, value, length) ? 0 : -ENOMEM;
}

int properties_copy(struct store *store, const struct volume *from, struct volume *to, uint64_t first_id)
{
    for (const struct property *property = from->properties; property; property = property->next)
        if (!property_attach(store, to, first_id++, property->name, property->value, property->length))
            return -ENOMEM;
    return 0;
}

void properties_forget(struct store *store, struct volume *volume)
{
    while (volume->properties)
        property_detach(store, volume, volume->properties);
}

void properties_free(struct volume *volume)
{
    for (struct property *property = volume->properties, *next; property; property = next) {
        next = property->next;
        property_free(property);
    }
}

/* ---- the public calls ------------------------------------------------------------------------------------------ */

static int property_check(const char *name, size_t length)
{
    size_t name_length = strlen(name);
    if (name_length == 0)
        return -EINVAL;
    if (name_length > STORE_PROPERTY_NAME_LENGTH_MAX)
        return -ENAMETOOLONG;
    return length > STORE_PROPERTY_LENGTH_MAX ? -EMSGSIZE : 0;
}

static void fill_property(const struct property *property, struct store_property *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->name, property->name, strlen(property->name));
    memcpy(out->value, property->value, property->length);
    out->length = property->length;
}

/* RECORD_PROPERTY: [volume id][property id][length of the name u16][name][value, empty: removed] */
int store_volume_property_set(struct store *store, uint64_t volume_id, const char *name, const void *value,
                              size_t length)
{
    int result = property_check(name, length);
    size_t name_length = strlen(name), body_length = 18 + name_length + length;
    if (result == 0)
        result = catalog_begin_change(store, body_length, &(struct space_need){.claim_class = CLAIM_RESERVE});
    if (result < 0)
        return result;
    uint64_t id = store->next_object_id;
    result = apply_property(store, volume_id, id, name, value, length);
    if (result == 0) {
        uint8_t *body = journal_record(store, RECORD_PROPERTY, body_length);
        save64(body, volume_id);
        save64(body + 8, id);
        save16(body + 16, (uint16_t)name_length);
        memcpy(body + 18, name, name_length);
        if (length)
            memcpy(body + 18 + name_length, value, length);
    }
    return catalog_end_change(store, result);
}

int store_volume_property_get(struct store *store, uint64_t volume_id, const char *name, struct store_property *out)
{
    pthread_mutex_lock(&store->lock);
    struct volume *volume = volume_by_id(store, volume_id);
    const struct property *property = volume ? property_find(volume, name) : NULL;
    if (property)
        fill_property(property, out);
    pthread_mutex_unlock(&store->lock);
    return property ? 0 : volume ? -ENODATA : -ENOENT;
}

int store_volume_property_next(struct store *store, uint64_t volume_id, const char *after, struct store_property *out)
{
    pthread_mutex_lock(&store->lock);
    struct volume *volume = volume_by_id(store, volume_id);
    const struct property *property = volume ? volume->properties : NULL;
    while (property && strcmp(property->name, after) <= 0)
        property = property->next;
    if (property)
        fill_property(property, out);
    pthread_mutex_unlock(&store->lock);
    return property ? 0 : volume ? -ENODATA : -ENOENT;
}

/* ---- journal and system tree ---------------------------------------------------------------------------------- */

static bool property_name_load(char *name, const uint8_t *from, size_t length)
{
    if (length == 0 || length > STORE_PROPERTY_NAME_LENGTH_MAX)
        return false;
    memcpy(name, from, length);
    name[length] = 0;
    return strlen(name) == length;
}

int property_replay(struct store *store, const uint8_t *body, size_t length)
{
    char name[STORE_PROPERTY_NAME_LENGTH_MAX + 1];
    if (length < 18)
        return -EUCLEAN;
    size_t name_length = load16(body + 16);
    if (name_length > length - 18 || length - 18 - name_length > STORE_PROPERTY_LENGTH_MAX ||
        !property_name_load(name, body + 18, name_length))
        return -EUCLEAN;
    return apply_property(store, load64(body), load64(body + 8), name, body + 18 + name_length,
                          length - 18 - name_length);
}

int property_load(struct store *store, uint64_t id, const uint8_t *value, size_t length)
{
    char name[STORE_PROPERTY_NAME_LENGTH_MAX + 1];
    if (id >= store->next_object_id || length <= PROPERTY_NAME)
        return -EUCLEAN;
    size_t name_length = load16(value + PROPERTY_NAME_LENGTH);
    if (name_length >= length - PROPERTY_NAME || length - PROPERTY_NAME - name_length > STORE_PROPERTY_LENGTH_MAX ||
        !property_name_load(name, value + PROPERTY_NAME, name_length))
        return -EUCLEAN;
    struct volume *volume = volume_by_id(store, load64(value + PROPERTY_VOLUME));
    if (!volume || property_find(volume, name) || volume->property_count >= STORE_PROPERTIES_MAX)
        return -EUCLEAN;
    struct property *property = property_attach(store, volume, id, name, value + PROPERTY_NAME + name_length,
                                                length - PROPERTY_NAME - name_length);
    if (!property)
        return -ENOMEM;
    property->dirty = false;
    property->saved = true;
    return 0;
}

int properties_save(struct checkpoint *checkpoint, struct volume *volume)
{
    for (struct property *property = volume->properties; property; property = property->next) {
        if (!property->dirty)
            continue;
        size_t name_length = strlen(property->name);
        struct saved_record *record = record_add(checkpoint, SYSTEM_PROPERTY, property->id,
                                                 PROPERTY_NAME + name_length + property->length, -1);
        if (!record)
            return -ENOMEM;
        save64(record->value + PROPERTY_VOLUME, volume->id);
        save16(record->value + PROPERTY_NAME_LENGTH, (uint16_t)name_length);
        memcpy(record->value + PROPERTY_NAME, property->name, name_length);
        memcpy(record->value + PROPERTY_NAME + name_length, property->value, property->length);
        property->dirty = false;
        property->saved = true;
    }
    return 0;
}
