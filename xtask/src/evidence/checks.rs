//! Checks that C code makes at run time, and the types that take their place.

/// One check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// Its number: a compile-fail case names it as `TNN`.
    pub(super) number: u8,
    /// What Linux checks when it runs, and what it answers.
    pub(super) checked: &'static str,
    /// What stands for it here.
    pub(super) here: &'static str,
    /// Why no compile-fail case shows it, where none does.
    pub(super) no_case: Option<&'static str>,
}

const fn case(number: u8, checked: &'static str, here: &'static str) -> Check {
    Check {
        number,
        checked,
        here,
        no_case: None,
    }
}

const fn none(number: u8, checked: &'static str, here: &'static str, why: &'static str) -> Check {
    Check {
        number,
        checked,
        here,
        no_case: Some(why),
    }
}

/// All checks, by number.
pub(super) const CHECKS: &[Check] = &[
    case(
        1,
        "map on a domain that does not page: `-EINVAL`; unmap gives 0",
        "map and unmap are methods of ranges, which only paging domains give",
    ),
    case(
        2,
        "`iova_to_phys` asks about identity and blocked domains first",
        "`Domain::translate` answers `Option`, and is there for paging domains only",
    ),
    case(
        3,
        "domain and device of different drivers: `-EINVAL`",
        "group and domain share the backend as a type parameter; capabilities are compared once, at attach",
    ),
    case(
        4,
        "PASID 0 given to a PASID attach: `-EINVAL`",
        "`Pasid` is not zero; a device's plain requests are attached by another method",
    ),
    case(
        5,
        "a driver without the PASID operation: `-EOPNOTSUPP`",
        "the method needs a trait that the backend has or has not",
    ),
    case(
        6,
        "a nested domain on a parent that was not made for it: `-EINVAL`",
        "`alloc_nested` takes a `Domain<UserManaged, _, ParentPaging>`",
    ),
    case(
        7,
        "a driver's allocator gave a domain of another kind: warning, `-EINVAL`",
        "the return type says the kind",
    ),
    case(
        8,
        "dirty tracking without the operations: `-EOPNOTSUPP`",
        "the methods stand on a witness that `Domain::dirty` gives or does not",
    ),
    case(
        9,
        "a DMA cookie set twice, or on a domain that is not the kernel's: `-EEXIST`, `-EINVAL`",
        "the DMA API is a part of `Domain<KernelPaging, _>` and of no other",
    ),
    case(
        10,
        "claim without an owner, release without a claim, double claim: warnings, `-EPERM`",
        "claiming consumes the blocked group, releasing the claimed one",
    ),
    case(
        11,
        "detach of a domain that is not the current one: warning, ignored",
        "an attachment is a value; detaching consumes it",
    ),
    case(
        12,
        "replace before attach, a handle used again: `-EINVAL`",
        "replacing is a method of an attached group and consumes it",
    ),
    case(
        13,
        "a domain freed with devices or children: warning, and a leak",
        "`destroy` hands the domain back; dropping frees nothing",
    ),
    case(
        14,
        "neither read nor write asked for: `-EINVAL`, checked twice",
        "`Perms` has no empty value",
    ),
    none(
        15,
        "addresses that overflow or are unaligned: `-EOVERFLOW`, `-EINVAL`",
        "`IovaRange`, `PhysRange`, `PageCount` are checked once, when they are made",
        "a number from outside has to be checked when the program runs; unit and property tests of the ranges do",
    ),
    none(
        16,
        "assertions that a lock is held",
        "a guard is an argument of what needs it",
        "a missing argument is no case worth keeping a message for; the table's operations cannot be called without a guard",
    ),
    case(
        17,
        "pages freed before their flush, which is skipped when the gathered range is empty",
        "`PendingUnmap` holds frames and tables; a receipt opens it",
    ),
    case(
        18,
        "interrupts of a device not isolated: `-EPERM`, unless a parameter of the module says otherwise; DMA not \
         coherent: `-EINVAL`",
        "a guest's group is attached with a witness; the override is a constructor that says so. Coherent DMA is \
         asked for, refused by its name where a unit cannot force it, and witnessed",
    ),
    case(
        19,
        "a device with firmware's one-to-one regions is blocked: `-EINVAL`",
        "such a group is another type, without a claim for a guest",
    ),
    none(
        20,
        "an object id of the wrong kind: `-ENOENT`, casts by `container_of`",
        "typed values inside; numbers are matched once, at the front for guests",
        "numbers of guests are checked when the program runs; tests and damage of the front's requests do",
    ),
    none(
        21,
        "operations that a driver left out: `-ENODEV`, `-EOPNOTSUPP`, warnings",
        "traits are implemented whole",
        "a trait implemented in part does not compile in any Rust program",
    ),
    none(
        22,
        "a driver's structure smaller than the core's: warning",
        "generics embed; nobody negotiates sizes",
        "there is no size to get wrong",
    ),
    none(
        23,
        "unknown flag bits: `-EOPNOTSUPP`, everywhere",
        "enums inside; bits are decoded once, at the front for guests",
        "bits from outside have to be checked when the program runs",
    ),
    case(
        24,
        "use of a domain by kernel or user: a convention",
        "`KernelPaging` and `UserManaged` are different types",
    ),
];
