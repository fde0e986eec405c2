/* Tells the store which file a call failed to read, so that people can be told its path. */
#include "internal.h"

#include <errno.h>

int damage_note(const struct place *place, uint64_t block, int status)
{
    struct store_damage damage = {.kind = STORE_DAMAGE_READ, .object_id = place->object_id};
    struct key key;
    if (status != -EIO)
        return status;
    key_set_number(&key, place->inode, ITEM_EXTENT, block);
    damage.key_length = (uint16_t)key.length;
    memcpy(damage.key, key.bytes, key.length);
    store_note_damage(place->filesystem->store, &damage);
    return status;
}
