/* What was found damaged, and where: a short list for people and for the mount that names files. The same place found
 * again only raises its count. When the list is full the oldest entry goes. */
#include "internal.h"

static bool same_place(const struct store_damage *a, const struct store_damage *b)
{
    return a->kind == b->kind && a->address == b->address && a->copy == b->copy && a->object_id == b->object_id &&
           a->key_length == b->key_length && memcmp(a->key, b->key, a->key_length) == 0;
}

void store_note_damage(struct store *store, const struct store_damage *damage)
{
    struct damage_list *list = &store->damage;
    uint64_t now = now_ns();
    pthread_mutex_lock(&list->mutex);
    list->total++;
    for (size_t i = 0; i < list->count; i++) {
        struct store_damage *known = &list->items[i];
        if (!same_place(known, damage))
            continue;
        known->count++;
        known->last_ns = now;
        known->repaired = damage->repaired;
        pthread_mutex_unlock(&list->mutex);
        return;
    }
    if (list->count == STORE_DAMAGES_MAX) {
        memmove(list->items, list->items + 1, (STORE_DAMAGES_MAX - 1) * sizeof *list->items);
        list->count--;
    }
    struct store_damage *added = &list->items[list->count++];
    *added = *damage;
    added->sequence = ++list->sequence;
    added->count = 1;
    added->first_ns = added->last_ns = now;
    pthread_mutex_unlock(&list->mutex);
}

size_t store_damages(struct store *store, uint64_t after_sequence, struct store_damage *out, uint64_t *total)
{
    struct damage_list *list = &store->damage;
    size_t count = 0;
    pthread_mutex_lock(&list->mutex);
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i].sequence > after_sequence)
            out[count++] = list->items[i];
    *total = list->total;
    pthread_mutex_unlock(&list->mutex);
    return count;
}

void damage_set_key(struct store_damage *damage, const void *key, size_t length)
{
    damage->key_length = (uint16_t)(length < STORE_DAMAGE_KEY_LENGTH_MAX ? length : STORE_DAMAGE_KEY_LENGTH_MAX);
    memcpy(damage->key, key, damage->key_length);
}
