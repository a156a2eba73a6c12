//! The catalogue: each class of fault that IOMMU code in production has shipped, tried on the rig.
//!
//! A test is named after its class and the best-known instance. `integration/rig/CATALOGUE.md` is the table,
//! with the classes that wait for their feature. The files of this folder are the contract: `vtd` and [`smmu`]
//! each run all of them, on machines with their units, and beside that what only one of them has; `first` runs all but
//! those about guests where SMMUs have first stages alone, and `large_granules` what larger smallest pages change. All but
//! [`smmu`] are programs of their own (`catalogue_vtd`, `catalogue_first`, `catalogue_granules`), each of which can be built
//! and run by itself.

mod smmu;
