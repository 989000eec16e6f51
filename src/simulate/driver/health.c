/*
 * Memory that errs: ECC counters, retired pages, remapped rows.
 */
#include "state.h"

static answer ecc_on(const struct thing *thing) {
    return thing->has[NUMBER_ecc] && !thing->number[NUMBER_ecc] ? NOT_SUPPORTED : OK;
}

answer nvmlDeviceGetEccMode(device device, unsigned int *current, unsigned int *pending) {
    VISIT_GPU(device);
    TRY(give_narrow(visit.thing, NUMBER_ecc, current));
    if (give_narrow(visit.thing, NUMBER_ecc_pending, pending) == NOT_SUPPORTED) *pending = *current;
    return OK;
}

/* Corrected or not, since the driver was loaded or since the card was made. */
static answer ecc_errors(const struct thing *thing, unsigned int error, unsigned int counter, wide *out) {
    static const enum number numbers[2][2] = {{NUMBER_ecc_corrected, NUMBER_ecc_corrected_total},
                                              {NUMBER_ecc_uncorrected, NUMBER_ecc_uncorrected_total}};
    if (error > 1 || counter > 1) return INVALID_ARGUMENT;
    TRY(ecc_on(thing));
    return give_wide(thing, numbers[error][counter], out);
}

answer nvmlDeviceGetTotalEccErrors(device device, unsigned int error, unsigned int counter, wide *out) {
    VISIT_GPU(device);
    return ecc_errors(visit.thing, error, counter, out);
}

/* All errors of this library are in the card's memory. */
answer nvmlDeviceGetMemoryErrorCounter(device device, unsigned int error, unsigned int counter,
                                       unsigned int location, wide *out) {
    const unsigned int device_memory = 2, locations = 8;
    VISIT_GPU(device);
    if (location >= locations) return INVALID_ARGUMENT;
    TRY(ecc_errors(visit.thing, error, counter, out));
    if (location != device_memory) *out = 0;
    return OK;
}

answer nvmlDeviceGetDetailedEccErrors(device device, unsigned int error, unsigned int counter,
                                      struct ecc_counts *out) {
    struct ecc_counts found = {0};
    VISIT_GPU(device);
    TRY(ecc_errors(visit.thing, error, counter, &found.device_memory));
    *out = found;
    return OK;
}

/* === Retired pages === */

static answer retired(const struct thing *thing, unsigned int cause, unsigned int *count, wide *addresses,
                      wide *times) {
    wide pages;
    if (cause > 1 || !count) return INVALID_ARGUMENT;
    TRY(give_wide(thing, cause ? NUMBER_retired_double : NUMBER_retired_single, &pages));
    unsigned int room = *count;
    *count = (unsigned int)pages;
    if (room < pages) return INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < pages; i++) {
        /* Some place for each; nobody can know better. */
        if (addresses) addresses[i] = (wide)(cause + 1) << 32 | (wide)i << 16;
        if (times) times[i] = 0;
    }
    return OK;
}

answer nvmlDeviceGetRetiredPages(device device, unsigned int cause, unsigned int *count, wide *addresses) {
    VISIT_GPU(device);
    return retired(visit.thing, cause, count, addresses, NULL);
}

answer nvmlDeviceGetRetiredPages_v2(device device, unsigned int cause, unsigned int *count, wide *addresses,
                                    wide *times) {
    VISIT_GPU(device);
    return retired(visit.thing, cause, count, addresses, times);
}

NUMBER_CALL(nvmlDeviceGetRetiredPagesPendingStatus, retired_pending)

/* === Remapped rows === */

answer nvmlDeviceGetRemappedRows(device device, unsigned int *correctable, unsigned int *uncorrectable,
                                 unsigned int *pending, unsigned int *failed) {
    VISIT_GPU(device);
    const struct thing *card = visit.thing;
    if (!card->has[NUMBER_rows_correctable] && !card->has[NUMBER_rows_uncorrectable]) return NOT_SUPPORTED;
    *correctable = (unsigned int)card->number[NUMBER_rows_correctable];
    *uncorrectable = (unsigned int)card->number[NUMBER_rows_uncorrectable];
    *pending = card->number[NUMBER_rows_pending] != 0;
    *failed = card->number[NUMBER_rows_failed] != 0;
    return OK;
}

answer nvmlDeviceGetRowRemapperHistogram(device device, struct row_histogram *out) {
    struct row_histogram found;
    VISIT_GPU(device);
    TRY(give_narrow(visit.thing, NUMBER_rows_max, &found.max));
    TRY(give_narrow(visit.thing, NUMBER_rows_high, &found.high));
    TRY(give_narrow(visit.thing, NUMBER_rows_partial, &found.partial));
    TRY(give_narrow(visit.thing, NUMBER_rows_low, &found.low));
    TRY(give_narrow(visit.thing, NUMBER_rows_none, &found.none));
    *out = found;
    return OK;
}
